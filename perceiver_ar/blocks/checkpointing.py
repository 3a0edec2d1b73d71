"""Trading recomputation for the memory of activations."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Checkpointing = Literal["none", "full", "offload"]
"""``full`` recomputes layers in the backward pass; ``offload`` also keeps their inputs in host memory."""


def run_layer(checkpointing: Checkpointing, layer: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    """``layer(*args, **kwargs)``; in training, its activations are kept as `checkpointing` says."""
    if checkpointing == "none" or not layer.training:
        return layer(*args, **kwargs)
    offload = checkpointing == "offload"
    with torch.autograd.graph.save_on_cpu(pin_memory=args[0].is_cuda) if offload else nullcontext():
        return checkpoint(layer, *args, use_reentrant=False, **kwargs)
