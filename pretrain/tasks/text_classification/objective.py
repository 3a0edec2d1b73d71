"""Text classification: a batch of texts -> loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from perceiver_ar.models.text import TextClassifier
from pretrain.tasks.examples import ExampleBatch
from pretrain.tasks.objective import Objective
from pretrain.tasks.task import TaskOutput


class TextClassificationObjective(Objective):
    """A classifier with its loss, the cross-entropy of the classes."""

    def __init__(self, model: TextClassifier) -> None:
        super().__init__()
        self.model: TextClassifier = model

    def forward(self, batch: ExampleBatch) -> TaskOutput:
        inputs = batch.tensors
        logits = self.model(inputs["input_ids"], inputs["key_valid"]).float()
        losses = F.cross_entropy(logits, inputs["labels"], reduction="none")
        right = (logits.argmax(-1) == inputs["labels"]).unsqueeze(-1)
        measures = {} if torch.is_grad_enabled() else {"accuracy": right}
        return TaskOutput(losses.sum(), losses.detach().unsqueeze(-1), measures)
