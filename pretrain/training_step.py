"""One optimizer step: micro-batches -> gradients -> update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.corpus import Batch
from pretrain.engine import Engine
from pretrain.tasks.causal_lm import seed_dropout


@dataclass(frozen=True)
class StepResult:
    applied: bool
    """False where gradients were not finite: nothing has changed."""
    grad_norm: float
    """Before clipping."""
    nll: Tensor
    """Nats summed over this rank's targets: a scalar on its device."""


def train_step(engine: Engine, micro_batches: Sequence[Batch], tokens: int, lr: float, seed: int) -> StepResult:
    """One optimizer step on this rank's micro-batches of a global batch with `tokens` targets over all ranks.

    Every target weighs the same, however the global batch is split into ranks and micro-batches. Collective.
    """
    nll = torch.zeros((), dtype=torch.float64, device=engine.ranks.device)
    for i, batch in enumerate(micro_batches, start=1):
        seed_dropout(seed, batch)
        output = engine(batch.to(engine.ranks.device))
        engine.backward(output.loss_sum / tokens, last=i == len(micro_batches))
        nll += output.nll.sum(dtype=torch.float64)
    applied, grad_norm = engine.step(lr)
    return StepResult(applied, grad_norm, nll)
