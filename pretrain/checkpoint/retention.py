"""Which checkpoints stay."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from pathlib import Path

from pretrain.checkpoint.layout import checkpoints_of, step_of
from pretrain.checkpoint.publishing import delete
from pretrain.checkpoint.reading import read_state
from pretrain.config import CheckpointSection
from pretrain.errors import InputError


def prune(run_dir: Path, section: CheckpointSection, damaged: Set[int]) -> None:
    """Delete the checkpoints that are not to stay, now that the newest undamaged one is whole. Raises OSError."""
    checkpoints = {step_of(path): path for path in checkpoints_of(run_dir)}
    losses = {step: _loss(path) for step, path in checkpoints.items()}
    for step in outdated(losses, section, damaged):
        delete(checkpoints[step])


def outdated(losses: Mapping[int, float | None], section: CheckpointSection, damaged: Set[int]) -> list[int]:
    """The steps whose checkpoints are to go, the oldest first.

    Args:
        losses: step -> validation loss at that very step, None without one, of all checkpoints of the run.
        damaged: steps of checkpoints that count for nothing, and go as soon as there is a newer one.
    """
    whole = sorted(losses.keys() - damaged)
    stay = set(whole[-section.keep :])
    if section.keep_every:
        stay.update(step for step in whole if step % section.keep_every == 0)
    scored = {step: loss for step in whole if (loss := losses[step]) is not None and math.isfinite(loss)}
    if section.keep_best and scored:
        stay.add(min(scored, key=lambda step: (scored[step], -step)))
    return sorted(step for step in losses.keys() - stay if step < whole[-1])


def _loss(checkpoint: Path) -> float | None:
    try:
        state = read_state(checkpoint)
    except (OSError, ValueError, KeyError, InputError):  # it has been damaged since it was written
        return None
    validation = state.get("validation")
    return validation["loss"] if validation and validation["step"] == state["step"] else None
