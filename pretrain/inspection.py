"""A step of a run, taken once more and looked into."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pretrain.checkpoint import restore_checkpoint
from pretrain.config import RunConfig
from pretrain.corpus import StepBatch
from pretrain.distributed import Ranks
from pretrain.engine import Engine, Judge, Update
from pretrain.progress import read_progress
from pretrain.stability import StabilityGuard
from pretrain.startup import build_objective, open_data
from pretrain.tasks import open_task
from pretrain.tasks.task import Record, TrainingData
from pretrain.training_step import StepResult, count_targets, finite_or_none, guarded_step, sample_losses, worst


class InspectedEngine(Engine):
    """Remembers, where asked to, the gradient norm of each parameter."""

    inspecting = False
    parameter_norms: dict[str, float]

    def step(self, lr: float, loss: Tensor, judge: Judge) -> Update:
        if self.inspecting:
            self.parameter_norms = self.gradient_norms()
        return super().step(lr, loss, judge)


def inspect_step(config: RunConfig, checkpoint: Path | None, step: int, top: int, ranks: Ranks) -> Record:
    """Take a run's steps from a checkpoint (None: from its beginning) up to `step`, and look into that one.

    The record is JSON-able, the same on every rank, and has at most `top` samples and parameters; what is not finite is
    None in it. Nothing is written. Collective. Raises InputError.
    """
    task = open_task(config)
    data = open_data(task, ranks)
    progress = ranks.together(partial(read_progress, checkpoint, data.describe()["fingerprints"]))
    # Hooks see into modules, not into what they are compiled to.
    config = config.model_copy(update={"train": config.train.model_copy(update={"compile": False})})
    objective = build_objective(config, checkpoint)
    engine = InspectedEngine(objective, config, ranks)
    if checkpoint is not None:
        restore_checkpoint(checkpoint, engine)
    engine.train()
    guard = StabilityGuard(config.stability, progress.stability)
    with ranks.together(partial(data.reader, ranks, progress)) as reader:
        for _ in range(progress.step + 1, step):
            _take(engine, ranks.together(partial(next, reader)), config, guard, data)
        batch = ranks.together(partial(next, reader))
        engine.inspecting = True
        with watching_outputs(objective.model) as not_finite:
            result = _take(engine, batch, config, guard, data)
    found = [(name, rank) for rank, names in enumerate(ranks.gather(not_finite)) for name in names[:1]]
    return {
        "step": step,
        "from_step": progress.step,
        "lr": result.lr,
        "loss": finite_or_none(result.loss),
        "grad_norm": finite_or_none(result.grad_norm),
        "problem": result.problem,
        "not_finite": [{"module": name, "rank": rank} for name, rank in found],
        "samples": _worst(result, batch, data, top, ranks),
        "parameters": _steepest(engine.parameter_norms, top),
    }


def _take(engine: Engine, batch: StepBatch, config: RunConfig, guard: StabilityGuard, data: TrainingData) -> StepResult:
    [targets] = engine.ranks.sum(count_targets(batch.micro_batches))
    return guarded_step(engine, batch, int(targets), config, guard, other_data=data.changes_at(batch.step))


@contextmanager
def watching_outputs(model: nn.Module) -> Iterator[list[str]]:
    """The names of modules as they give outputs that are not finite: of those within one another, the inner first."""
    found: list[str] = []

    def look(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        if not all(tensor.isfinite().all() for tensor in tensors):
            found.append(name)

    handles = [
        module.register_forward_hook(partial(look, name or "the model")) for name, module in model.named_modules()
    ]
    yield found
    for handle in handles:
        handle.remove()


def _worst(result: StepResult, batch: StepBatch, data: TrainingData, top: int, ranks: Ranks) -> list[Record]:
    """The samples of the highest losses of all ranks, where they come from and what they say."""
    mine = worst(sample_losses(result.row_losses, batch.micro_batches), lambda row: row.loss, top)
    rows = {
        sample: (micro_batch, row)
        for micro_batch in batch.micro_batches
        for row, sample in enumerate(micro_batch.indices.tolist())
    }
    described = [(loss, {**data.place(loss.sample), "text": data.show(*rows[loss.sample])}) for loss in mine]
    of_all = worst(chain.from_iterable(ranks.gather(described)), lambda pair: pair[0].loss, top)
    return [{"sample": row.sample, "loss": finite_or_none(row.loss), **about} for row, about in of_all]


def _steepest(norms: dict[str, float], top: int) -> list[Record]:
    steepest = worst(norms.items(), lambda item: item[1], top)
    return [{"parameter": name, "grad_norm": finite_or_none(norm)} for name, norm in steepest]
