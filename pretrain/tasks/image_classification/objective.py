"""Image classification: a batch of images -> loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from perceiver_ar.models.image import ImageClassifier
from pretrain.tasks.examples import ExampleBatch
from pretrain.tasks.objective import Objective
from pretrain.tasks.task import TaskOutput


class ImageClassificationObjective(Objective):
    """A classifier with its loss: the cross-entropy of the classes, of mixed images by their shares."""

    model: ImageClassifier

    def __init__(self, model: ImageClassifier, label_smoothing: float) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing

    def forward(self, batch: ExampleBatch) -> TaskOutput:
        images, labels, shares = (batch.tensors[name] for name in ("images", "labels", "shares"))
        logits = self.model(images.to(next(self.model.parameters()).dtype)).float()
        losses = mixed_cross_entropy(logits, labels, shares)
        trained = losses
        if self.training and self.label_smoothing:
            trained = mixed_cross_entropy(logits, labels, shares, self.label_smoothing)
        measures = {} if torch.is_grad_enabled() else {"accuracy": (logits.argmax(-1) == labels[:, 0]).unsqueeze(-1)}
        return TaskOutput(trained.sum(), losses.detach().unsqueeze(-1), measures)


def mixed_cross_entropy(logits: Tensor, labels: Tensor, shares: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """(rows,) of `logits` (rows, classes) and two `labels` (rows, 2), the first of which has `shares` (rows,)."""
    own, other = (
        F.cross_entropy(logits, labels[:, i], reduction="none", label_smoothing=label_smoothing) for i in range(2)
    )
    return shares * own + (1 - shares) * other
