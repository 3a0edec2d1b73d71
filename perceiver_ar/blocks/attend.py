"""Scaled dot-product attention: the one place that knows attention kernels.

Three back ends compute the same function:

- ``reference`` materialises every score; any dtype and feature; fp32 softmax for lower precisions.
- ``sdpa`` is :func:`torch.nn.functional.scaled_dot_product_attention` with an explicit mask; any dtype and feature.
- ``flash`` never materialises scores or masks; without padding, segments and odd shapes only (see `_flash_obstacle`).

``auto`` takes ``flash`` where it can serve the call and ``sdpa`` elsewhere.

Causal attention is right-aligned: query `i` of `N` sees keys `0 .. M - N + i`. torch's ``is_causal`` is left-aligned,
and its CPU flash kernel is slower with an explicit mask. It is therefore run twice, on the prefix without a mask and on
the square latent part with ``is_causal``, and the two results are merged by their log-sum-exp. CUDA flash kernels
right-align by themselves.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache, partial, reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BACKENDS = ("auto", "flash", "sdpa", "reference")
Segments = tuple[Tensor, Tensor]

_process_backend = "auto"


def use_backend(name: str) -> None:
    """Make `name` (one of `BACKENDS`) the back end of every later call that does not name its own."""
    global _process_backend
    if name not in BACKENDS:
        raise ValueError(f"unknown attention backend {name!r}, choose from {', '.join(BACKENDS)}")
    _process_backend = name


def describe_backend(device: torch.device | str, dtype: torch.dtype, head_channels: int) -> str:
    """One line: the back end that serves unpadded causal attention here, and why.

    Raises:
        ValueError: the back end set by `use_backend` cannot serve it.
    """
    q, k = (torch.empty(1, 1, length, head_channels, device=device, dtype=dtype) for length in (2, 4))
    obstacle = _flash_obstacle(q, k, k, causal=True, masked=False, dropout=0.0)
    name = _choose(_process_backend, obstacle)
    if name == "flash":
        if q.is_cuda:
            return f"flash ({_cuda_flash(torch.cuda.get_device_capability(q.device), head_channels)[0]})"
        return "flash (aten CPU kernels, prefix/latent split)"
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
        key_valid: `(B, M)` bool, False for keys that nobody attends to.
        segments: Integer segments of queries `(B, N)` and keys `(B, M)`; attention stays within equal segments.
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
    masked = key_valid is not None or segments is not None
    name = _choose(
        _process_backend if backend is None else backend,
        _flash_obstacle(q, k, v, causal=causal, masked=masked, dropout=dropout),
    )
    lse: Tensor | None = None
    if name == "flash":
        out, lse = _flash(q, k, v, causal, dropout)
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


def _choose(requested: str, obstacle: str | None) -> str:
    if requested == "auto":
        return "sdpa" if obstacle else "flash"
    if requested not in BACKENDS:
        raise ValueError(f"unknown attention backend {requested!r}, choose from {', '.join(BACKENDS)}")
    if requested == "flash" and obstacle:
        raise ValueError(f"attention backend 'flash' cannot serve this call: {obstacle}")
    return requested


def _flash_obstacle(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, masked: bool, dropout: float) -> str | None:
    """Why no flash kernel can serve the call, or None if one can."""
    if masked:
        return "key padding or segments need a mask"
    if q.shape[-1] != v.shape[-1]:
        return f"queries have {q.shape[-1]} channels and values {v.shape[-1]}"
    if 0 in (*q.shape, k.shape[2]) or (causal and q.shape[2] > k.shape[2]):
        return f"{q.shape[2]} queries and {k.shape[2]} keys leave queries without a key"
    if q.device.type == "cpu":
        return "dropout on the CPU" if dropout else None
    if q.device.type != "cuda":
        return f"no kernel for device {q.device.type}"
    if q.dtype not in (torch.bfloat16, torch.float16):
        return f"no CUDA kernel for {q.dtype}"
    if q.shape[-1] % 8:
        return f"{q.shape[-1]} head channels are not a multiple of 8"
    # is_causal=False: the question is asked for the kernel, which right-aligns, not for SDPA, which refuses N != M.
    params = torch.backends.cuda.SDPAParams(q, k, v, None, dropout, False, False)
    return None if torch.backends.cuda.can_use_flash_attention(params) else "not supported by this GPU or shape"


def _allowed(q: Tensor, k: Tensor, causal: bool, key_valid: Tensor | None, segments: Segments | None) -> Tensor | None:
    """Which keys each query sees, bool, broadcastable to `(B, 1, N, M)`; None is all."""
    masks = []
    if causal:
        queries, keys = q.shape[2], k.shape[2]
        masks.append(torch.ones(1, 1, queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries))
    if key_valid is not None:
        masks.append(key_valid[:, None, None, :])
    if segments is not None:
        masks.append(segments[0][:, None, :, None] == segments[1][:, None, None, :])
    return reduce(torch.logical_and, masks) if masks else None


def _scores(q: Tensor, k: Tensor, allowed: Tensor | None) -> Tensor:
    dtype = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(dtype) @ k.to(dtype).mT * q.shape[-1] ** -0.5
    return scores if allowed is None else scores.masked_fill(~allowed, -torch.inf)


def _reference(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, dropout: float) -> tuple[Tensor, Tensor]:
    scores = _scores(q, k, allowed)
    lse = scores.logsumexp(-1)
    weights = (scores - lse.masked_fill(lse == -torch.inf, 0).unsqueeze(-1)).exp()
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


def _flash(q: Tensor, k: Tensor, v: Tensor, causal: bool, dropout: float) -> tuple[Tensor, Tensor]:
    if not q.is_cuda:
        return _FlashCPU.apply(q, k, v, causal)
    if dropout:
        return _aten_cuda_flash(q, k, v, causal, dropout)
    return _cuda_flash(torch.cuda.get_device_capability(q.device), q.shape[-1])[1](q, k, v, causal)


class _FlashCPU(torch.autograd.Function):
    """torch's CPU flash kernels, right-aligned when causal.

    Each part's backward kernel is given the output and log-sum-exp of the whole, as in ring attention
    (https://arxiv.org/abs/2310.01889): the gradients of the parts then are those of the whole.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        prefix = k.shape[2] - q.shape[2] if causal else k.shape[2]
        ctx.parts = [(slice(0, prefix), False)] if prefix else []
        if causal:
            ctx.parts.append((slice(prefix, None), True))
        results = [kernel(q, k[:, :, keys], v[:, :, keys], 0.0, square) for keys, square in ctx.parts]
        out, lse = reduce(lambda a, b: merge_partial(*a, *b), results)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, lse = ctx.saved_tensors
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        parts = [kernel(grad, q, k[:, :, keys], v[:, :, keys], out, lse, 0.0, square) for keys, square in ctx.parts]
        if len(parts) == 1:
            return *parts[0], None
        grad_q, grad_k, grad_v = zip(*parts, strict=True)
        return grad_q[0].add_(grad_q[1]), torch.cat(grad_k, 2), torch.cat(grad_v, 2), None


class _FlashPackage(NamedTuple):
    title: str
    module: str
    lse_option: str
    gpus: tuple[int, ...]
    """Major compute capabilities."""
    max_head_channels: int


_FLASH_PACKAGES = (  # the fastest first
    _FlashPackage("flash-attn 3", "flash_attn_interface", "return_attn_probs", (9,), 256),
    _FlashPackage("flash-attn 4", "flash_attn.cute", "return_lse", (9, 10), 128),
    _FlashPackage("flash-attn 2", "flash_attn", "return_attn_probs", (8, 9, 10, 12), 256),
)


@cache
def _cuda_flash(
    capability: tuple[int, int], head_channels: int
) -> tuple[str, Callable[[Tensor, Tensor, Tensor, bool], tuple[Tensor, Tensor]]]:
    """Title and function of the best installed dropout-free CUDA kernel."""
    for package in _FLASH_PACKAGES:
        if capability[0] in package.gpus and head_channels <= package.max_head_channels:
            try:
                kernel = importlib.import_module(package.module).flash_attn_func
            except (ImportError, AttributeError):
                continue
            return package.title, partial(_package_flash, kernel, package.lse_option)
    return "aten CUDA kernels", _aten_cuda_flash


def _package_flash(
    kernel: Callable[..., Any], lse_option: str, q: Tensor, k: Tensor, v: Tensor, causal: bool
) -> tuple[Tensor, Tensor]:
    rows = (x.transpose(1, 2) for x in (q, k, v))
    out, lse = kernel(*rows, causal=causal, **{lse_option: True})[:2]
    return out.transpose(1, 2), lse


def _aten_cuda_flash(q: Tensor, k: Tensor, v: Tensor, causal: bool, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
    # Unlike SDPA, the operator right-aligns is_causal: torch.nn.attention.bias.causal_lower_right is built on it.
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout, causal)
    return out, lse
