from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from perceiver_ar.models.perceiver_ar import PerceiverAR
from pretrain.checkpoint import Saver, checkpoints_of, step_of
from pretrain.config import CheckpointSection
from tests.pretrain.checkpoint.stored_state import ALONE, CONFIG, StoredState, state_of


@pytest.fixture
def engine() -> StoredState:
    torch.manual_seed(0)
    return StoredState(PerceiverAR(CONFIG))


@pytest.fixture
def saver(engine: StoredState, tmp_path: Path) -> Callable[..., Saver]:
    """saver(run=tmp_path, **section) -> a Saver of a process that is alone."""

    def saver(run: Path = tmp_path, saved_step: int = 0, **section: Any) -> Saver:
        return Saver(run, CheckpointSection(**section), ALONE, engine, saved_step)

    return saver


@pytest.fixture
def save(saver: Callable[..., Saver], tmp_path: Path) -> Callable[..., bool]:
    """save(step, run=tmp_path, background=False, **section): one save; `loss` and `validated` as in `state_of`.

    As by a process that goes on from the newest checkpoint before `step`, or from `saved_step`.
    """

    def save(
        step: int,
        run: Path = tmp_path,
        background: bool = False,
        loss: float | None = None,
        validated: int | None = None,
        **arguments: Any,
    ) -> bool:
        before = [found for found in map(step_of, checkpoints_of(run)) if found < step]
        one = saver(run, **{"saved_step": max(before, default=0)} | arguments)
        one.begin(state_of(step, loss, validated), background)
        one.wait()
        new = one.finish()
        one.wait()
        return new

    return save


@pytest.fixture
def names() -> Callable[[Path], list[str]]:
    """names(run): what lies among its checkpoints."""
    return lambda run: sorted(path.name for path in (run / "checkpoints").iterdir())
