"""Tasks of EleutherAI's lm-eval harness (https://github.com/EleutherAI/lm-evaluation-harness)."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from pretrain.errors import InputError, Unavailable
from pretrain.exported_model import ExportedModel
from pretrain.trained_model import TrainedModel

if TYPE_CHECKING:  # lm-eval takes seconds to import, and need not be installed
    from lm_eval.tasks import TaskManager

SEED = 0
"""As `simple_evaluate` has it."""
BOOTSTRAP_ITERATIONS = 1000
"""For standard errors that have no formula."""
HUB_SECONDS = 5.0
"""To wait for the Hub's first answer."""


def load_tasks(names: Sequence[str], include_path: Path | None) -> dict[str, list[Any]]:
    """The harness's tasks and groups behind each name, with their data.

    `include_path` is a folder of YAML files that describe further tasks.

    Raises `InputError` where lm-eval is not installed, has no such task, or cannot load one; `Unavailable` where the
    data of one cannot be reached.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise InputError(f"--tasks: {', '.join(names)} need lm-eval ({error}): pip install .[eval]") from error
    _quieten()
    manager = TaskManager(include_path=include_path, include_defaults=False)
    if not set(names) <= set(manager.all_tasks):
        # Looking through the harness's own thousands of files takes long.
        manager = TaskManager(include_path=include_path)
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise InputError(
            f"--tasks: lm-eval has no task {', '.join(unknown)}; `lm-eval ls tasks` lists all, "
            "--include-path names a folder of your own"
        )
    with _offline_without_hub():
        return {name: _load(manager, name) for name in names}


def run_harness(
    model: TrainedModel | ExportedModel,
    tasks: Mapping[str, list[Any]],
    console: Console,
    *,
    limit: int | None,
    batch: int,
    device: torch.device,
) -> Iterator[tuple[str, dict[str, float]]]:
    """Name and metrics of each task, and of each task of a group, as soon as they are known; `limit` examples of each.

    Metrics have the harness's own names; `tasks` are as `load_tasks` gives them.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from pretrain.evaluation.harness_model import HarnessModel

    reader, nothing_to_find = HarnessModel(model, batch, device, console), TaskManager(include_defaults=False)
    for loaded in tasks.values():
        results = simple_evaluate(
            reader,
            tasks=loaded,
            task_manager=nothing_to_find,
            limit=limit,
            bootstrap_iters=BOOTSTRAP_ITERATIONS,
            log_samples=False,
        )
        for name, found in results["results"].items():
            yield name, _metrics(found)


def _quieten() -> None:
    """Progress is shown by `HarnessModel`."""
    import datasets
    from tqdm import tqdm  # type: ignore[import-untyped]

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    # The harness's own bars have no switch.
    tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)


@contextmanager
def _offline_without_hub() -> Iterator[None]:
    """Without it, its client tries each file of each task for half a minute before it looks into its cache."""
    from datasets import config
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import HTTPError

    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
        reached = True
    except (HTTPError, ConnectionError):  # the latter where HF_HUB_OFFLINE is set
        reached = False
    before = constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE
    if not reached:
        constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE = before


def _load(manager: TaskManager, name: str) -> list[Any]:
    random.seed(SEED)  # some tasks shuffle their choices
    try:
        loaded = manager.load([name])
    except ConnectionError as error:
        raise Unavailable(f"--tasks: {name} cannot be loaded: {_line(error)}") from error
    except Exception as error:  # whatever is wrong with a description or its data
        raise InputError(f"--tasks: {name} cannot be loaded: {_line(error)}") from error
    group = loaded["groups"].get(name)
    return [group] if group else list(loaded["tasks"].values())


def _metrics(found: dict[str, Any]) -> dict[str, float]:
    """The harness names the filter that answers went through behind each metric: ``acc,none`` is ``acc``."""
    return {
        name.removesuffix(",none"): float(value)
        for name, value in found.items()
        if "," in name and isinstance(value, int | float)
    }


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
