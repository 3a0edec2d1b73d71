"""Flash kernels: attention that never materialises scores or masks.

torch's ``is_causal`` is left-aligned, and its CPU flash kernel is slower with an explicit mask. It is therefore run
twice, on the prefix without a mask and on the square latent part with ``is_causal``, and the two results are merged by
their log-sum-exp. CUDA flash kernels right-align by themselves.

Documents that lie end to end need no mask either: each is attention of its own. On the CPU the kernels run once for
each document that has queries; on CUDA one kernel takes them all.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import cache, partial, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from perceiver_ar.blocks.merge import merge_partial
from perceiver_ar.blocks.segments import Segments


def flash_obstacle(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    key_valid: Tensor | None = None,
    segments: Segments | None = None,
    dropout: float = 0.0,
) -> str | None:
    """Why no flash kernel can serve the call, or None if one can."""
    if key_valid is not None:
        return "key padding needs a mask"
    if segments is not None and segments.bounds is None:
        return "segments that do not lie end to end need a mask"
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


def flash_title(device: torch.device, head_channels: int) -> str:
    """The kernels that serve calls without segments."""
    if device.type == "cuda":
        return _cuda_flash(torch.cuda.get_device_capability(device), head_channels)[0]
    return "aten CPU kernels, prefix/latent split"


def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, segments: Segments | None, dropout: float
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of what `flash_obstacle` lets pass; the log-sum-exp has no gradient."""
    if not q.is_cuda:
        return _FlashCPU.apply(q, k, v, causal, segments)
    if segments is not None and segments.bounds is not None:
        return _aten_cuda_varlen(q, k, v, causal, segments.bounds, dropout)
    if dropout:
        return _aten_cuda_flash(q, k, v, causal, dropout)
    return _cuda_flash(torch.cuda.get_device_capability(q.device), q.shape[-1])[1](q, k, v, causal)


Block = tuple[slice, slice, slice]
"""Rows, heads and tokens."""


class _FlashCPU(torch.autograd.Function):
    """torch's CPU flash kernels, right-aligned when causal.

    Each part's backward kernel is given the output and log-sum-exp of the whole, as in ring attention
    (https://arxiv.org/abs/2310.01889): the gradients of the parts then are those of the whole.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool, segments: Segments | None
    ) -> tuple[Tensor, Tensor]:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        ctx.blocks = list(_cpu_blocks(q, k, causal, segments))
        out = torch.empty_like(q)
        lse = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
        for queries, parts in ctx.blocks:
            results = [kernel(q[queries], k[keys], v[keys], 0.0, square) for keys, square in parts]
            out[queries], lse[queries] = reduce(lambda a, b: merge_partial(*a, *b), results)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, out, lse = ctx.saved_tensors
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        grad_q, grad_k, grad_v = (torch.zeros_like(x) for x in (q, k, v))
        for queries, parts in ctx.blocks:
            whole = out[queries], lse[queries]
            for keys, square in parts:
                part = kernel(grad[queries], q[queries], k[keys], v[keys], *whole, 0.0, square)
                grad_q[queries] += part[0]
                grad_k[keys], grad_v[keys] = part[1:]
        return grad_q, grad_k, grad_v, None, None


def _cpu_blocks(
    q: Tensor, k: Tensor, causal: bool, segments: Segments | None
) -> Iterator[tuple[Block, list[tuple[Block, bool]]]]:
    """The kernel calls: for each block of queries, its blocks of keys, and whether they are a left-aligned square."""
    everything = slice(None)
    if segments is None:
        spans = [(everything, slice(0, q.shape[2]), slice(0, k.shape[2]))]
    else:
        spans = [(slice(row, row + 1), queries, keys) for row, queries, keys in segments.spans()]
    for rows, queries, keys in spans:
        prefix_end = keys.stop - (queries.stop - queries.start) if causal else keys.stop
        parts = [(slice(keys.start, prefix_end), False), (slice(prefix_end, keys.stop), True)]
        yield (
            (rows, everything, queries),
            [((rows, everything, part), square) for part, square in parts if part.start < part.stop],
        )


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


def _aten_cuda_varlen(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, bounds: tuple[Tensor, Tensor], dropout: float
) -> tuple[Tensor, Tensor]:
    # torch's own kernel on every GPU: the variable-length functions of the packages differ in their arguments.
    tokens = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    # The lengths only bound those of the documents, whose longest the host does not know.
    longest = q.shape[2], k.shape[2]
    out, lse, *_ = torch.ops.aten._flash_attention_forward(*tokens, *bounds, *longest, dropout, causal, False)
    rows = len(q), q.shape[2]
    return out.unflatten(0, rows).transpose(1, 2), lse.unflatten(1, rows).transpose(0, 1)
