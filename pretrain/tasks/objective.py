"""A model with the loss it is trained on."""

from __future__ import annotations

from typing import Any

from torch import nn

from pretrain.tasks.task import TaskOutput


class Objective(nn.Module):
    """Batch -> `TaskOutput`."""

    model: nn.Module
    """Holds the weights that are trained and saved, under the names of its own state dict."""

    def forward(self, batch: Any) -> TaskOutput:
        raise NotImplementedError
