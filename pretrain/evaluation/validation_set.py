"""What a run of any task is validated on, the whole of it."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence

import torch
from rich.console import Console

from perceiver_ar.blocks.attend import use_backend
from pretrain.checkpoint import load_weights
from pretrain.config import RunConfig, read_config
from pretrain.corpus.config import CorpusEvaluationSection
from pretrain.distributed import Ranks
from pretrain.errors import InputError
from pretrain.release import VALIDATION
from pretrain.schema import override
from pretrain.tasks import open_task
from pretrain.tasks.task import Batch, TaskOutput
from pretrain.trained_run import TrainedRun


def evaluate_validation(
    run: TrainedRun, overrides: Sequence[str], console: Console, *, device: torch.device, batch: int | None
) -> tuple[str, dict[str, float]]:
    """Loss and measures of a trained model on all of its run's validation data, and what to call them.

    `overrides` are of the run's configuration, in its `data`: to validate on something else. `batch` examples go
    through the model at once, by default as many as in training.

    Raises `InputError` where the data are not there or damaged.
    """
    config = _whole_validation(_overridden(run, overrides), batch)
    task = open_task(config)
    if problems := list(task.problems(world_size=1)):
        raise InputError("; ".join(problems))
    use_backend(config.train.attention)
    ranks = Ranks(0, 1, device, None)  # type: ignore[arg-type]  # alone: there is nobody to agree with
    data = task.open_data(ranks)
    objective = task.build()
    objective.model.load_state_dict(load_weights(run.checkpoint))
    objective.to(device, run.dtype).eval()
    rows = 0
    with console.status("validation") as status:

        def score(batch: Batch) -> TaskOutput:
            nonlocal rows
            with torch.no_grad():
                output = objective(batch.to(device))
            rows += len(batch.indices)
            status.update(f"validation: {rows:,} {task.unit}")
            return output

        record = data.validate(score, ranks, run.state["step"])
    measures = {name: value for name, value in record.items() if isinstance(value, float)}
    return ", ".join([VALIDATION, *overrides]), measures


def _overridden(run: TrainedRun, overrides: Sequence[str]) -> RunConfig:
    for each in overrides:
        if not each.startswith("data."):
            raise InputError(f"{each}: evaluation can use other data.*, all else is as the model was trained with")
    config = read_config(override(copy.deepcopy(run.state["config"]), overrides))
    # Where the run lies now: what it made of its data is there.
    return config.model_copy(update={"run": run.config.run})


def _whole_validation(config: RunConfig, batch: int | None) -> RunConfig:
    reads_windows = isinstance(config.evaluation, CorpusEvaluationSection)
    evaluation = config.evaluation.model_copy(update={"windows": sys.maxsize} if reads_windows else {"examples": None})
    train = config.train.model_copy(update={} if batch is None else {"micro_batch": batch})
    return config.model_copy(update={"evaluation": evaluation, "train": train})
