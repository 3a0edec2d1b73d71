"""Scaled dot-product attention: with `flash` beside it, the one place that knows attention kernels.

Three back ends compute the same function:

- ``reference`` materialises every score; any dtype and feature; fp32 softmax for lower precisions.
- ``sdpa`` is :func:`torch.nn.functional.scaled_dot_product_attention` with an explicit mask; any dtype and feature.
- ``flash`` never materialises scores or masks; not for every padding and shape (see `flash_obstacle`).

``auto`` takes ``flash`` where it can serve the call and ``sdpa`` elsewhere.

Causal attention is right-aligned: query `i` of `N` sees keys `0 .. M - N + i`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from perceiver_ar.blocks.flash import flash_attention, flash_obstacle, flash_title
from perceiver_ar.blocks.segments import Segments

BACKENDS = ("auto", "flash", "sdpa", "reference")

_process_backend = "auto"


def use_backend(name: str) -> None:
    """Make `name` (one of `BACKENDS`) the back end of every later call that does not name its own."""
    global _process_backend
    if name not in BACKENDS:
        raise ValueError(f"unknown attention backend {name!r}, choose from {', '.join(BACKENDS)}")
    _process_backend = name


@contextmanager
def using_backend(name: str) -> Iterator[None]:
    """`use_backend` until the end of the block."""
    previous = _process_backend
    use_backend(name)
    try:
        yield
    finally:
        use_backend(previous)


def describe_backend(device: torch.device | str, dtype: torch.dtype, head_channels: int) -> str:
    """One line: the back end that serves unpadded causal attention here, and why.

    Raises:
        ValueError: the back end set by `use_backend` cannot serve it.
    """
    q, k = (torch.empty(1, 1, length, head_channels, device=device, dtype=dtype) for length in (2, 4))
    obstacle = flash_obstacle(q, k, k, causal=True)
    name = _choose(_process_backend, obstacle)
    if name == "flash":
        return f"flash ({flash_title(q.device, head_channels)})"
    return f"{name} ({f'no flash: {obstacle}' if _process_backend == 'auto' else 'as set'})"


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    key_valid: Tensor | None = None,
    segments: Segments | None = None,
    dropout: float = 0.0,
    return_lse: bool = False,
    backend: str | None = None,
) -> Any:
    """Attention of `N` queries over `M` keys with scale ``1 / sqrt(Dqk)``.

    Args:
        q: Queries, `(B, H, N, Dqk)`.
        k: Keys, `(B, H, M, Dqk)`.
        v: Values, `(B, H, M, Dv)`.
        causal: Query `i` sees keys `0 .. M - N + i` only.
        key_valid: `(B, M)` bool, False for keys that nobody attends to; or `(B or 1, N, M)`, of each query.
        segments: Attention stays within equal segments of queries and keys. With `key_valid`, or without their
            `bounds`, they need a mask.
        dropout: Probability of dropping an attention weight.
        return_lse: Also return the log-sum-exp of each query's scaled scores, differentiable. Under `sdpa` its value
            costs another product of queries and keys; a gradient through it, outside `reference`, costs one more
            attention forward and backward.
        backend: One of `BACKENDS`, instead of the process-wide one.

    Returns:
        `(B, H, N, Dv)`, and with `return_lse` a pair of it and `(B, H, N)` in fp32 (float64 for float64 input).
        Queries that see no key get zeros, and -inf as their log-sum-exp.

    Raises:
        ValueError: `backend` is unknown or cannot serve this call.
    """
    causal = causal and q.shape[2] > 1  # a single right-aligned query sees every key
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    name = _choose(
        _process_backend if backend is None else backend,
        flash_obstacle(q, k, v, causal=causal, key_valid=key_valid, segments=segments, dropout=dropout),
    )
    masked = key_valid is not None or segments is not None
    lse: Tensor | None = None
    if name == "flash" and q.shape[2] == 1 and segments is None and not return_lse:
        # A decoding step: SDPA without a mask is the same kernel, without the work around it.
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    elif name == "flash":
        out, lse = flash_attention(q, k, v, causal, segments, dropout)
    elif name == "sdpa" and causal and not masked and q.shape[2] == k.shape[2] and not return_lse:
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
    else:
        allowed = _allowed(q, k, causal, key_valid, segments)
        if name == "reference":
            out, lse = _reference(q, k, v, allowed, dropout)
        else:
            out = _sdpa(q, k, v, allowed, dropout)
            lse = _log_sum_exp(q, k, allowed) if return_lse else None
    if not return_lse:
        return out
    if name != "reference" and torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
        same = partial(attend, causal=causal, key_valid=key_valid, segments=segments, backend=name)
        lse = _DifferentiableLogSumExp.apply(q, k, lse, same)
    return out, lse


def _choose(requested: str, obstacle: str | None) -> str:
    if requested == "auto":
        return "sdpa" if obstacle else "flash"
    if requested not in BACKENDS:
        raise ValueError(f"unknown attention backend {requested!r}, choose from {', '.join(BACKENDS)}")
    if requested == "flash" and obstacle:
        raise ValueError(f"attention backend 'flash' cannot serve this call: {obstacle}")
    return requested


def _allowed(q: Tensor, k: Tensor, causal: bool, key_valid: Tensor | None, segments: Segments | None) -> Tensor | None:
    """Which keys each query sees, bool, broadcastable to `(B, 1, N, M)`; None is all."""
    masks = []
    if causal:
        queries, keys = q.shape[2], k.shape[2]
        masks.append(torch.ones(1, 1, queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries))
    if key_valid is not None:
        masks.append(key_valid[:, None] if key_valid.ndim == 3 else key_valid[:, None, None])
    if segments is not None:
        masks.append(segments.queries[:, None, :, None] == segments.keys[:, None, None, :])
    return reduce(torch.logical_and, masks) if masks else None


def _scores(q: Tensor, k: Tensor, allowed: Tensor | None) -> Tensor:
    dtype = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(dtype) @ k.to(dtype).mT * q.shape[-1] ** -0.5
    return scores if allowed is None else scores.masked_fill(~allowed, -torch.inf)


def _reference(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, dropout: float) -> tuple[Tensor, Tensor]:
    scores = _scores(q, k, allowed)
    lse = scores.logsumexp(-1)
    if allowed is None:
        weights = scores.softmax(-1)
    else:  # of a row that sees nothing, softmax would make NaN
        empty = (lse == -torch.inf).unsqueeze(-1)
        weights = scores.masked_fill(empty, 0).softmax(-1).masked_fill(empty, 0)
    return (F.dropout(weights, dropout) @ v.to(weights.dtype)).to(q.dtype), lse


def _sdpa(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, dropout: float) -> Tensor:
    if allowed is None:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    # What a fully masked row yields differs between SDPA's kernels: let it see everything, then drop its output.
    empty = ~allowed.any(-1, keepdim=True)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed | empty, dropout_p=dropout)
    return out.masked_fill(empty, 0)


@torch.no_grad()
def _log_sum_exp(q: Tensor, k: Tensor, allowed: Tensor | None) -> Tensor:
    """`(B, H, N)`; the scores of one sequence at a time exist in memory."""
    masks = [None] * len(q) if allowed is None else allowed.expand(len(q), -1, -1, -1)
    return torch.stack([_scores(*row).logsumexp(-1) for row in zip(q, k, masks, strict=True)])


class _DifferentiableLogSumExp(torch.autograd.Function):
    """Identity on `lse` that knows its gradients in `q` and `k`, which kernels do not give.

    With weights `P` and scale `s`, ``d lse / d q = s P k`` and ``d lse / d k = s P^T q``: the output of attention
    with the keys as values, and the gradient of that output in the values.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, lse: Tensor, attention: Callable[..., Tensor]) -> Tensor:
        ctx.save_for_backward(q, k)
        ctx.attention = attention
        return lse.view_as(lse)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_lse: Tensor) -> tuple[Tensor, Tensor, None, None]:
        q, k = ctx.saved_tensors
        with torch.enable_grad():
            values = k.detach().requires_grad_()
            mean_key = ctx.attention(q.detach(), k.detach(), values)
        grad = (grad_lse * q.shape[-1] ** -0.5).to(q.dtype).unsqueeze(-1)
        (grad_k,) = torch.autograd.grad(mean_key, values, grad * q)
        return grad * mean_key.detach(), grad_k, None, None
