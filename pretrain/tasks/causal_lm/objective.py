"""Next-token prediction: a batch of windows -> loss."""

from __future__ import annotations

from perceiver_ar.models.perceiver_ar import PerceiverAR, draw_prefix_keep
from pretrain.corpus import Batch
from pretrain.tasks.objective import Objective
from pretrain.tasks.task import TaskOutput


class CausalLM(Objective):
    """A Perceiver AR with the loss it is trained on. In training mode prefix dropout follows (seed, sample)."""

    model: PerceiverAR

    def __init__(self, model: PerceiverAR, seed: int) -> None:
        super().__init__()
        self.model = model
        self.seed = seed

    def forward(self, batch: Batch) -> TaskOutput:
        """`losses` are nats per target; `accuracy` is 1 where the target is what the model holds likeliest."""
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
        measures = {} if loss.correct is None else {"accuracy": loss.correct.view_as(batch.targets)}
        return TaskOutput(loss.total, loss.nll.view_as(batch.targets), measures)
