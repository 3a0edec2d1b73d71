"""Multi-head attention: projections, rotation and cache around `attend`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from perceiver_ar.blocks.attend import attend
from perceiver_ar.blocks.linear import Linear
from perceiver_ar.blocks.positions import RotaryAngles, rotate
from perceiver_ar.blocks.segments import Segments

KeyValueStore = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor | None]]
"""Where cached decoding keeps the keys and values of one attention layer: takes new ones (batch, heads, new, channels),
returns all that the new queries may attend to, and which of it each of them sees, (batch or 1, new, keys) bool; None
means right-aligned causal."""


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention of `query_channels` inputs over `kv_channels` inputs.

    Queries and keys have `qk_channels` in all heads together, values `v_channels`; each defaults as in perceiver-io:
    `qk_channels` to `query_channels`, `v_channels` to `qk_channels`, `output_channels` to `query_channels`.
    `max_heads_parallel` bounds memory by attending with so many heads at a time.
    """

    def __init__(
        self,
        num_heads: int,
        query_channels: int,
        kv_channels: int,
        *,
        qk_channels: int | None = None,
        v_channels: int | None = None,
        output_channels: int | None = None,
        causal: bool = False,
        qkv_bias: bool = False,
        output_bias: bool = False,
        qk_norm: bool = False,
        dropout: float = 0.0,
        max_heads_parallel: int | None = None,
    ) -> None:
        super().__init__()
        qk_channels = qk_channels or query_channels
        v_channels = v_channels or qk_channels
        if qk_channels % num_heads or v_channels % num_heads:
            raise ValueError(
                f"qk_channels ({qk_channels}) and v_channels ({v_channels}) must divide into {num_heads} heads"
            )
        self.num_heads = num_heads
        self.causal = causal
        self.dropout = dropout
        self.max_heads_parallel = max_heads_parallel or num_heads
        self.q_proj = Linear(query_channels, qk_channels, bias=qkv_bias)
        self.k_proj = Linear(kv_channels, qk_channels, bias=qkv_bias)
        self.v_proj = Linear(kv_channels, v_channels, bias=qkv_bias)
        self.o_proj = Linear(v_channels, output_channels or query_channels, bias=output_bias)
        self.q_norm = nn.RMSNorm(qk_channels // num_heads) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(qk_channels // num_heads) if qk_norm else nn.Identity()

    def forward(
        self,
        query_input: Tensor,
        kv_input: Tensor,
        *,
        key_valid: Tensor | None = None,
        segments: Segments | None = None,
        rotary_q: RotaryAngles | None = None,
        rotary_k: RotaryAngles | None = None,
        store: KeyValueStore | None = None,
    ) -> Tensor:
        """(batch, N, query_channels), (batch, M, kv_channels) -> (batch, N, output_channels).

        `key_valid` (batch, keys) is False where a key is padding, and attention stays within `segments`. With a
        `store` instead, `kv_input` holds the new tokens only and attention reaches what was stored before; keys are
        stored rotated.
        """
        q, k, v = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x in (self.q_proj(query_input), self.k_proj(kv_input), self.v_proj(kv_input))
        )
        q, k = self.q_norm(q), self.k_norm(k)
        if rotary_q is not None:
            q = rotate(q, rotary_q)
        if rotary_k is not None:
            k = rotate(k, rotary_k)
        causal = self.causal
        if store is not None:
            k, v, key_valid = store(k, v)
            causal = causal and key_valid is None
        groups = zip(*(x.split(self.max_heads_parallel, dim=1) for x in (q, k, v)), strict=True)
        dropout = self.dropout if self.training else 0.0
        heads = [
            attend(*group, causal=causal, key_valid=key_valid, segments=segments, dropout=dropout) for group in groups
        ]
        out = heads[0] if len(heads) == 1 else torch.cat(heads, dim=1)
        return self.o_proj(out.transpose(1, 2).flatten(2))
