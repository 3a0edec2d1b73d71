"""Cross-entropy of a language model's output projection, with z-loss, a chunk of tokens at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""Target of tokens that are not trained on."""


@dataclass(frozen=True)
class TokenLoss:
    """Summed loss of a batch of tokens, in nats."""

    total: Tensor
    """Scalar: sum of `nll` plus the weighted sum of squared log-partitions. The only differentiable field."""
    nll: Tensor
    """`(T,)` negative log-likelihood of each token, 0 where ignored."""
    z: Tensor
    """Scalar: sum of the squared log-partition over tokens that are not ignored, unweighted."""
    correct: Tensor | None
    """`(T,)` bool, whether the target has the highest logit, False where ignored; None where gradients are computed,
    as it costs a pass over the logits."""


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    z_loss: float,
    chunk_tokens: int | None = None,
) -> TokenLoss:
    """Loss of ``hidden @ weight.T + bias`` against `targets`, plus `z_loss` times the squared log-partition.

    The logits of one chunk at a time exist. Where gradients are wanted they are computed in the same pass, so the
    backward pass needs neither logits nor `weight`. Logits and gradients are multiplied in the dtype of the input,
    the softmax is in fp32 and so are the sums of the gradients of `weight` and `bias` (float64 for float64 input).
    z-loss: PaLM, https://arxiv.org/abs/2204.02311.

    Args:
        hidden: `(T, d)`.
        weight: `(V, d)`.
        bias: `(V,)` or None.
        targets: `(T,)` int64, `IGNORED` where there is nothing to learn.
        chunk_tokens: Tokens per chunk; None makes the logits of a chunk 64 MiB on a CPU and 256 MiB elsewhere.
    """
    if chunk_tokens is None:
        budget = (64 if hidden.device.type == "cpu" else 256) * 2**20
        chunk_tokens = max(1, budget // (4 * weight.shape[0]))
    wanted = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (hidden, weight, bias))
    return TokenLoss(*_ChunkedCrossEntropy.apply(hidden, weight, bias, targets, z_loss, chunk_tokens, wanted))


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        z_loss: float,
        chunk_tokens: int,
        with_gradients: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        nll = torch.empty(len(hidden), dtype=dtype, device=hidden.device)
        z = torch.zeros((), dtype=dtype, device=hidden.device)
        gradients = _Gradients(hidden, weight, bias, dtype) if with_gradients else None
        correct = None if with_gradients else torch.empty_like(targets, dtype=torch.bool)
        for start in range(0, len(hidden), chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            logits = F.linear(hidden[rows], weight, bias).to(dtype)
            trained = targets[rows] != IGNORED
            index = targets[rows].where(trained, 0).unsqueeze(-1)
            target_logit = logits.gather(-1, index).squeeze(-1)
            if correct is not None:
                correct[rows] = logits.argmax(-1) == targets[rows]
            # From here on `logits` is overwritten: a chunk costs one buffer in the softmax's dtype.
            peak = logits.amax(-1, keepdim=True)
            exp = logits.sub_(peak).exp_()
            partition = exp.sum(-1)
            log_z = partition.log() + peak.squeeze(-1)
            nll[rows] = (log_z - target_logit).where(trained, 0)
            z += log_z.square().where(trained, 0).sum()
            if gradients is not None:
                scale = ((1 + 2 * z_loss * log_z) / partition).where(trained, 0)
                exp.mul_(scale.unsqueeze(-1)).scatter_add_(-1, index, -trained.to(dtype).unsqueeze(-1))
                gradients.add(rows, exp.to(hidden.dtype), hidden, weight)
        ctx.save_for_backward(*(gradients.tensors() if gradients is not None else ()))
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(nll, z, *(() if correct is None else (correct,)))
        return nll.sum() + z_loss * z, nll, z, correct

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        scaled = (
            None if gradient is None else (gradient * grad_total).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *scaled, None, None, None, None


class _Gradients:
    """Gradients of the summed loss, collected over chunks."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.hidden = torch.empty_like(hidden)
        self.weight = torch.zeros_like(weight, dtype=dtype)
        self.bias = None if bias is None else torch.zeros_like(bias, dtype=dtype)

    def add(self, rows: slice, grad_logits: Tensor, hidden: Tensor, weight: Tensor) -> None:
        torch.mm(grad_logits, weight, out=self.hidden[rows])
        if self.weight.dtype == hidden.dtype:
            self.weight.addmm_(grad_logits.T, hidden[rows])
        else:
            self.weight += grad_logits.T @ hidden[rows]
        if self.bias is not None:
            self.bias += grad_logits.sum(0, dtype=self.bias.dtype)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.hidden, self.weight, self.bias
