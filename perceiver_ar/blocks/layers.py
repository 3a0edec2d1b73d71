"""Pre-norm residual layers that every model is built from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceiver_ar.blocks.attention import KeyValueStore, MultiHeadAttention
from perceiver_ar.blocks.linear import Linear
from perceiver_ar.blocks.positions import RotaryAngles
from perceiver_ar.blocks.segments import Segments

Activation = Literal["gelu", "geglu", "swiglu", "squared_relu"]
Norm = Literal["layernorm", "rmsnorm"]

NORM_EPS = 1e-5


def make_norm(kind: Norm, channels: int) -> nn.Module:
    return nn.LayerNorm(channels, eps=NORM_EPS) if kind == "layernorm" else nn.RMSNorm(channels, eps=NORM_EPS)


def squared_relu(x: Tensor) -> Tensor:
    """``max(x, 0) ** 2`` (Primer, https://arxiv.org/abs/2109.08668)."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "geglu": F.gelu,
    "swiglu": F.silu,
    "squared_relu": squared_relu,
}


class MLP(nn.Module):
    """(batch, n, channels) -> the same shape, through `hidden` channels.

    `geglu` and `swiglu` multiply the activated hidden channels with a second projection
    (https://arxiv.org/abs/2002.05202), so they hold half as many weights again at the same `hidden`.
    """

    def __init__(self, channels: int, hidden: int, activation: Activation, *, bias: bool = False) -> None:
        super().__init__()
        self.activate = ACTIVATIONS[activation]
        self.up = Linear(channels, hidden, bias=bias)
        self.gate = Linear(channels, hidden, bias=bias) if activation in ("geglu", "swiglu") else None
        self.down = Linear(hidden, channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.activate(self.up(x)))
        return self.down(self.activate(self.gate(x)) * self.up(x))


class CrossAttentionLayer(nn.Module):
    """Latents read a context, then an MLP; both with residuals to the un-normalised latents.

    Without `residual`, what was read takes the place of the latents.

    With `query_norm_on_latents`, the context's last positions are the latents themselves and enter as keys and values
    under `q_norm` instead of `kv_norm` (perceiver-io).
    """

    def __init__(
        self,
        attention: MultiHeadAttention,
        mlp: MLP,
        norms: tuple[nn.Module, nn.Module, nn.Module],
        *,
        dropout: float = 0.0,
        residual: bool = True,
        query_norm_on_latents: bool = False,
    ) -> None:
        super().__init__()
        self.q_norm, self.kv_norm, self.mlp_norm = norms
        self.attention = attention
        self.mlp = mlp
        self.dropout = nn.Dropout(dropout)
        self.residual = residual
        self.query_norm_on_latents = query_norm_on_latents

    def forward(
        self,
        latents: Tensor,
        context: Tensor,
        *,
        key_valid: Tensor | None = None,
        segments: Segments | None = None,
        rotary_q: RotaryAngles | None = None,
        rotary_k: RotaryAngles | None = None,
        store: KeyValueStore | None = None,
    ) -> Tensor:
        """(batch, N, channels), (batch, M, context channels) -> (batch, N, channels)."""
        queries = self.q_norm(latents)
        if self.query_norm_on_latents:
            prefix = context[:, : context.shape[1] - latents.shape[1]]
            keys = torch.cat((self.kv_norm(prefix), queries), dim=1)
        else:
            keys = self.kv_norm(context)
        read = self.attention(
            queries, keys, key_valid=key_valid, segments=segments, rotary_q=rotary_q, rotary_k=rotary_k, store=store
        )
        read = self.dropout(read)
        latents = latents + read if self.residual else read
        return latents + self.dropout(self.mlp(self.mlp_norm(latents)))


class SelfAttentionLayer(nn.Module):
    """Latents attend to latents, then an MLP; both with residuals."""

    def __init__(
        self, attention: MultiHeadAttention, mlp: MLP, norms: tuple[nn.Module, nn.Module], *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm, self.mlp_norm = norms
        self.attention = attention
        self.mlp = mlp
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        latents: Tensor,
        *,
        key_valid: Tensor | None = None,
        segments: Segments | None = None,
        rotary: RotaryAngles | None = None,
        store: KeyValueStore | None = None,
    ) -> Tensor:
        """(batch, N, channels) -> the same shape."""
        x = self.norm(latents)
        read = self.attention(
            x, x, key_valid=key_valid, segments=segments, rotary_q=rotary, rotary_k=rotary, store=store
        )
        latents = latents + self.dropout(read)
        return latents + self.dropout(self.mlp(self.mlp_norm(latents)))
