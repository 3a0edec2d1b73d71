"""What a run does before its first step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from perceiver_ar.blocks.attend import describe_backend, use_backend
from pretrain.checkpoint import CheckpointReader
from pretrain.config import RunConfig
from pretrain.distributed import Ranks, RanksError
from pretrain.engine import Engine, accumulation_steps, saved_tensors
from pretrain.errors import InputError
from pretrain.progress import Progress
from pretrain.tasks import open_task
from pretrain.tasks.objective import Objective
from pretrain.tasks.task import Task, TrainingData
from pretrain.trained_model import DTYPES


def open_data(task: Task, ranks: Ranks) -> TrainingData:
    """The data of a run. Collective. Raises InputError on every rank, also where they have different data."""
    data = task.open_data(ranks)
    of_ranks = [described["fingerprints"] for described in ranks.gather(data.describe())]
    for rank, fingerprints in enumerate(of_ranks):
        if fingerprints != of_ranks[0]:
            raise RanksError(
                f"data: rank {rank} has other data ({fingerprints}) than rank 0 ({of_ranks[0]}): make them the same on "
                "every node"
            )
    return data


def build_objective(config: RunConfig, checkpoint: Path | None) -> Objective:
    """The model on the CPU in fp32: with a checkpoint's weights, else those that the task gives it at the start.

    Raises RanksError where these are another model's, or damaged.
    """
    use_backend(config.train.attention)
    torch.manual_seed(config.run.seed)
    task = open_task(config)
    objective = task.build()
    if checkpoint is not None:
        _load_weights(objective.model, checkpoint)
    else:
        _initialize(task, objective.model)
    objective.model.activation_checkpointing = config.train.activation_checkpointing  # type: ignore[assignment]
    return objective


def _initialize(task: Task, model: nn.Module) -> None:
    try:
        task.initialize(model)
    except InputError as error:
        raise RanksError(str(error), error.code) from error  # all ranks read the same


def _load_weights(model: nn.Module, checkpoint: Path) -> None:
    reader = CheckpointReader(checkpoint)
    weights = saved_tensors(model)
    _check_shapes(reader.state["shapes"], {name: weight.shape for name, weight in weights.items()}, checkpoint)
    # One after another: all ranks of a node do this at once, so that a second copy of the model counts.
    for name, weight in weights.items():
        weight.data.copy_(reader.whole("weight", name))


def _check_shapes(saved: Mapping[str, Sequence[int]], wanted: Mapping[str, Sequence[int]], checkpoint: Path) -> None:
    for name in [*wanted, *saved]:
        ours, theirs = (tuple(of[name]) if name in of else "absent" for of in (wanted, saved))
        if ours != theirs:
            raise RanksError(
                f"model: {name} is {ours} by the configuration but {theirs} in {checkpoint}; a run keeps its model: "
                "choose another run.dir for another one"
            )


def banner(
    config: RunConfig, task: Task, ranks: Ranks, engine: Engine, progress: Progress, checkpoint: Path | None
) -> str:
    """What is about to run, for people."""
    train, unit = config.train, task.unit
    attention = describe_backend(ranks.device, DTYPES[train.precision], task.attention_channels())
    cuda = ranks.device.type == "cuda"
    device = torch.cuda.get_device_name(ranks.device) if cuda else f"{torch.get_num_threads()} CPU threads"
    accumulation = accumulation_steps(config, ranks.size)
    targets = task.step_targets()
    begin = "from scratch" if task.init_from is None else f"from the weights of {task.init_from}"
    start = begin if checkpoint is None else f"from step {progress.step}, {checkpoint}"
    return "\n".join(
        (
            f"run             {config.run.dir}, {start}",
            f"ranks           {ranks.size} x {device}, ZeRO stage {train.zero.stage}, {train.precision}",
            f"attention       {attention}",
            f"parameters      {sum(map(math.prod, engine.shapes.values())):,}, "
            f"{task.step_flops() / targets:.3g} FLOPs per trained {unit.removesuffix('s')}",
            f"global batch    {train.global_batch} = micro-batch {train.micro_batch} x accumulation {accumulation} "
            f"x {ranks.size} ranks; {targets:,} trained {unit}",
            f"steps           {train.steps:,}, up to {train.steps * targets:,} trained {unit}",
        )
    )
