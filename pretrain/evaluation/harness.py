"""Tasks of EleutherAI's lm-eval harness (https://github.com/EleutherAI/lm-evaluation-harness)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pretrain.errors import InputError
from pretrain.exported_model import ExportedModel
from pretrain.trained_model import TrainedModel

BOOTSTRAP_ITERATIONS = 1000
"""For standard errors that have no formula."""


def run_harness(
    model: TrainedModel | ExportedModel,
    tasks: Sequence[str],
    *,
    include_path: Path | None,
    limit: int | None,
    batch: int,
    device: torch.device,
) -> dict[str, dict[str, float]]:
    """Metrics of each task, and of each task of a group, by the harness's own names; `limit` examples of each at most.

    `include_path` is a folder of YAML files that describe further tasks.

    Raises `InputError` where lm-eval is not installed, has no such task, or the data of one cannot be read.
    """
    try:
        import lm_eval
    except ImportError as error:
        raise InputError(f"--tasks: {', '.join(tasks)} need lm-eval ({error}): pip install .[eval]") from error
    from pretrain.evaluation.harness_model import HarnessModel

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = _find_tasks(tasks, include_path)
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        raise InputError(
            f"--tasks: lm-eval has no task {', '.join(unknown)}; `lm-eval ls tasks` lists all, "
            "--include-path names a folder of your own"
        )
    try:
        results = lm_eval.simple_evaluate(
            HarnessModel(model, batch, device),
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            bootstrap_iters=BOOTSTRAP_ITERATIONS,
            log_samples=False,
        )
    except OSError as error:  # of `datasets`: there is no such data set, or no way to it
        raise InputError(f"--tasks: the data of {', '.join(tasks)} cannot be read: {_line(error)}") from error
    return {task: _metrics(found) for task, found in results["results"].items()}


def _find_tasks(tasks: Sequence[str], include_path: Path | None) -> Any:
    """A task manager that knows the tasks, if there are such."""
    from lm_eval.tasks import TaskManager

    own = TaskManager(include_path=include_path, include_defaults=False)
    # Looking through the harness's own thousands of files takes long.
    return own if set(tasks) <= set(own.all_tasks) else TaskManager(include_path=include_path)


def _metrics(found: dict[str, Any]) -> dict[str, float]:
    """The harness names the filter that answers went through behind each metric: ``acc,none`` is ``acc``."""
    return {
        name.removesuffix(",none"): float(value)
        for name, value in found.items()
        if "," in name and isinstance(value, int | float)
    }


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
