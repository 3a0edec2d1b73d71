"""Next-token prediction: a batch of windows -> loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from perceiver_ar.models.perceiver_ar import PerceiverAR, draw_prefix_keep
from pretrain.corpus import Batch


class TaskOutput(NamedTuple):
    # A tuple because DeepSpeed finds the tensors to hook in tuples, lists and dicts only.
    loss_sum: Tensor
    """Scalar to minimise, z-loss included: a sum over the batch's targets, to be divided by the step's targets."""
    nll: Tensor
    """Nats per target (batch, N), 0 where the target is ignored."""
    correct: Tensor | None
    """(batch, N) bool, whether the target is what the model holds likeliest, False where it is ignored; None where
    gradients are computed."""


class CausalLM(nn.Module):
    """A Perceiver AR with the loss it is trained on. In training mode prefix dropout follows (seed, sample)."""

    def __init__(self, model: PerceiverAR, seed: int) -> None:
        super().__init__()
        self.model = model
        self.seed = seed

    def forward(self, batch: Batch) -> TaskOutput:
        prefix_length = batch.input_ids.shape[1] - batch.targets.shape[1]
        dropout = self.model.config.prefix_dropout if self.training else 0.0
        keep = draw_prefix_keep(self.seed, batch.indices, prefix_length, dropout)
        loss = self.model(
            batch.input_ids,
            prefix_length,
            key_valid=batch.key_valid,
            segments=batch.segments,
            prefix_keep=keep,
            targets=batch.targets,
        ).loss
        correct = None if loss.correct is None else loss.correct.view_as(batch.targets)
        return TaskOutput(loss.total, loss.nll.view_as(batch.targets), correct)


def seed_dropout(seed: int, batch: Batch) -> None:
    """Make dropout inside the model a function of (seed, the batch's first sample): no generator need be saved."""
    torch.manual_seed(((seed << 40) ^ int(batch.indices[0])) % 2**63)
