"""Attention computed in parts."""

from __future__ import annotations

import torch
from torch import Tensor


def merge_partial(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the union of two disjoint sets of keys, from the attention over each.

    Args:
        out_a, out_b: `(..., D)` outputs.
        lse_a, lse_b: `(...)` log-sum-exp of the scores; -inf, with an output of zeros, where a query sees no key.

    Returns:
        Output and log-sum-exp over both sets. Differentiable in all four arguments, without NaN at -inf.
    """
    empty = torch.maximum(lse_a, lse_b) == -torch.inf
    a, b = lse_a.masked_fill(empty, 0), lse_b.masked_fill(empty, 0)
    weight = torch.sigmoid(b - a).unsqueeze(-1)
    # Interpolated in the dtype of the log-sum-exp and rounded once.
    out = torch.lerp(out_a.to(weight.dtype), out_b.to(weight.dtype), weight).to(out_a.dtype)
    return out, torch.logaddexp(a, b).masked_fill(empty, -torch.inf)
