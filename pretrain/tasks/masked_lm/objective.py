"""Masked language modelling: a batch of masked texts -> loss."""

from __future__ import annotations

from perceiver_ar.blocks.cross_entropy import chunked_cross_entropy
from perceiver_ar.models.text import MaskedLM
from pretrain.tasks.masked_lm.batch import MaskedBatch
from pretrain.tasks.objective import Objective
from pretrain.tasks.task import TaskOutput


class MaskedLMObjective(Objective):
    """A masked language model with its loss: the cross-entropy of the masked tokens."""

    def __init__(self, model: MaskedLM) -> None:
        super().__init__()
        self.model: MaskedLM = model

    def forward(self, batch: MaskedBatch) -> TaskOutput:
        inputs, targets = batch.tensors, batch.tensors["targets"]
        hidden = self.model.hidden(inputs["input_ids"], inputs.get("key_valid"), positions=inputs["positions"])
        loss = chunked_cross_entropy(
            hidden.flatten(0, 1), self.model.output_weight, self.model.output_bias, targets.flatten(), z_loss=0.0
        )
        measures = {} if loss.correct is None else {"accuracy": loss.correct.view_as(targets)}
        return TaskOutput(loss.total, loss.nll.view_as(targets), measures)
