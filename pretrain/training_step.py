"""One optimizer step: micro-batches -> gradients -> update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.config import RunConfig
from pretrain.corpus import StepBatch
from pretrain.distributed import Ranks
from pretrain.engine import Engine, Judge
from pretrain.schedule import learning_rate
from pretrain.stability import StabilityGuard
from pretrain.tasks.task import Batch, Record

T = TypeVar("T")

WORST_SAMPLES = 8
"""That many samples of a skipped step are named in its record."""


@dataclass(frozen=True)
class StepResult:
    problem: str | None
    """Why nothing has changed; None where the step was applied."""
    loss: float
    """Mean nats per target of the global batch."""
    grad_norm: float
    """Before clipping."""
    lr: float
    row_losses: Tensor
    """(rows,) float64 on its device: nats summed over the targets of each row of this rank."""


@dataclass(frozen=True)
class SampleLoss:
    sample: int
    """Its global number."""
    loss: float
    """Mean nats per target."""


def guarded_step(
    engine: Engine, batch: StepBatch, tokens: int, config: RunConfig, guard: StabilityGuard, *, other_data: bool
) -> StepResult:
    """A run's step: `train_step` as `guard` judges, who is told what came of it. Collective.

    `other_data`: it reads other data than the step before.
    """
    if other_data:
        guard.new_data()
    lr = learning_rate(batch.step + 1, config.optimizer.lr, config.train.steps, config.schedule)
    result = train_step(engine, batch.micro_batches, tokens, lr, config.run.seed, guard.judge)
    if result.problem is None:
        guard.took(result.loss, result.grad_norm)
    else:
        guard.skipped(result.problem)
    return result


def train_step(
    engine: Engine, micro_batches: Sequence[Batch], tokens: int, lr: float, seed: int, judge: Judge
) -> StepResult:
    """One optimizer step on this rank's micro-batches of a global batch with `tokens` targets over all ranks.

    Every target weighs the same, however the global batch is split into ranks and micro-batches. The step is skipped
    where `judge` is against it. Collective.
    """
    row_losses = []
    for i, batch in enumerate(micro_batches, start=1):
        seed_dropout(seed, batch)
        output = engine(batch.to(engine.ranks.device))
        engine.backward(output.loss_sum / tokens, last=i == len(micro_batches))
        row_losses.append(output.losses.sum(1, dtype=torch.float64))
    rows = torch.cat(row_losses)
    nll = rows.sum()
    if engine.ranks.size > 1:
        dist.all_reduce(nll)  # on the device: the host does not wait for it
    update = engine.step(lr, nll / tokens, judge)
    return StepResult(update.problem, update.loss, update.grad_norm, lr, rows)


def seed_dropout(seed: int, batch: Batch) -> None:
    """Make dropout inside the model a function of (seed, the batch's first sample): no generator need be saved."""
    torch.manual_seed(((seed << 40) ^ int(batch.indices[0])) % 2**63)


def count_targets(micro_batches: Sequence[Batch]) -> int:
    """Targets that are not ignored."""
    return sum(int(batch.target_counts().sum()) for batch in micro_batches)


def skipped_record(step: int, result: StepResult, micro_batches: Sequence[Batch], ranks: Ranks) -> Record:
    """What metrics.jsonl keeps of a step that was skipped: values that are not finite are None there. Collective."""
    rows = ranks.gather(sample_losses(result.row_losses, micro_batches))
    samples = [row.sample for row in chain.from_iterable(rows)]
    named = worst(chain.from_iterable(rows), lambda row: row.loss, WORST_SAMPLES)
    return {
        "kind": "skipped",
        "step": step,
        "problem": result.problem,
        "loss": finite_or_none(result.loss),
        "grad_norm": finite_or_none(result.grad_norm),
        "samples": [min(samples), max(samples)],
        "worst_samples": [{"sample": row.sample, "loss": finite_or_none(row.loss)} for row in named],
    }


def sample_losses(row_losses: Tensor, micro_batches: Sequence[Batch]) -> list[SampleLoss]:
    """The loss of each sample of this rank; rows without targets have one of 0."""
    samples = torch.cat([batch.indices for batch in micro_batches]).tolist()
    targets = torch.cat([batch.target_counts() for batch in micro_batches]).clamp(min=1)
    losses = (row_losses.cpu() / targets).tolist()
    return [SampleLoss(sample, loss) for sample, loss in zip(samples, losses, strict=True)]


def worst(items: Iterable[T], value_of: Callable[[T], float], count: int) -> list[T]:
    """Those of the highest values, highest first; what is not finite comes before all else."""

    def order(item: T) -> float:
        value = value_of(item)
        return -value if math.isfinite(value) else -math.inf

    return sorted(items, key=order)[:count]


def finite_or_none(value: float) -> float | None:
    """JSON has no other numbers."""
    return value if math.isfinite(value) else None
