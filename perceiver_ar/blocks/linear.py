"""Linear maps that are as fast for the few rows of a decoding step as memory allows."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW_ROWS = 8
MANY_WEIGHTS = 1 << 17
"""Fewer stay in a core's cache."""
MOST_BLOCKS = 32


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: (..., in) -> (..., out) with a `weight` (out, in).

    On the CPU, a product of fp32 matrices with few rows runs on one thread, and all of its time goes into reading the
    weight. As a batch of products with blocks of the weight it is read by all threads.
    """
    out_channels, in_channels = weight.shape
    rows = x.numel() // in_channels
    few_of_many = rows <= FEW_ROWS and weight.numel() >= MANY_WEIGHTS
    if not (few_of_many and x.is_cpu and x.dtype == weight.dtype == torch.float32):
        return F.linear(x, weight, bias)
    blocks = math.gcd(out_channels, MOST_BLOCKS)
    inputs = x.reshape(1, rows, in_channels).expand(blocks, rows, in_channels)
    products = torch.bmm(inputs, weight.view(blocks, -1, in_channels).mT)
    out = products.transpose(0, 1).reshape(*x.shape[:-1], out_channels)
    return out if bias is None else out + bias.to(out.dtype)  # autocast made it of another


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
