"""Cached decoding the plain way: what krasserm/perceiver-io 0.11.1 does at every step, computed with our weights.

New keys and values are concatenated to all earlier ones, all keys are rotated again, and attention is an einsum, a
softmax and an einsum.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from perceiver_ar.blocks.attention import MultiHeadAttention
from perceiver_ar.blocks.layers import MLP, SelfAttentionLayer
from perceiver_ar.blocks.positions import rotary_frequencies
from perceiver_ar.models.perceiver_ar import PerceiverAR, PerceiverARConfig

SHAPE = PerceiverARConfig.preset(
    "perceiver_io", vocab_size=262, max_seq_len=4096, max_latents=512, num_channels=512, num_heads=8, num_layers=8
)
"""perceiver-io's WikiText-103 model: 30.6M parameters."""

Cached = tuple[Tensor, Tensor] | None


class ConcatenatingDecoder:
    """Decodes with the weights of a model of `SHAPE`'s kind, while its latents and context are not full."""

    def __init__(self, model: PerceiverAR) -> None:
        self.model = model
        self._cached: list[Cached] = [None] * (1 + model.config.num_layers)
        self._seen = 0

    def __call__(self, input_ids: Tensor, prefix_length: int = 0) -> Tensor:
        """Logits (batch, vocab_size) of the token after `input_ids` (batch, new), which follow those already given."""
        model, config = self.model, self.model.config
        self._seen += input_ids.shape[1]
        positions = torch.arange(self._seen)
        embedded = F.embedding(input_ids, model.embed.tokens.weight)
        if model.embed.positions is not None:
            embedded = embedded + F.embedding(positions[-input_ids.shape[1] :], model.embed.positions.weight)
        prefix, latents = embedded.split((prefix_length, input_ids.shape[1] - prefix_length), dim=1)
        rotated = int(config.rotary_fraction * config.num_channels / config.num_heads)
        angles = positions[:, None] * rotary_frequencies(rotated, config.rotary_base)

        cross = model.cross_attention
        queries = cross.q_norm(latents)
        keys = torch.cat((cross.kv_norm(prefix), queries), dim=1)
        latents = latents + self._attend(0, cross.attention, queries, keys, angles)
        latents = latents + _mlp(cross.mlp, cross.mlp_norm(latents))
        for number, layer in enumerate(model.self_attention):
            assert isinstance(layer, SelfAttentionLayer)
            x = layer.norm(latents)
            is_rotated = config.rotary_layers is None or number < config.rotary_layers
            latents = latents + self._attend(1 + number, layer.attention, x, x, angles if is_rotated else None)
            latents = latents + _mlp(layer.mlp, layer.mlp_norm(latents))
        return F.linear(latents[:, -1], model.output_weight, model.output_bias)

    def _attend(
        self, layer: int, attention: MultiHeadAttention, x_q: Tensor, x_kv: Tensor, angles: Tensor | None
    ) -> Tensor:
        q, k, v = _linear(attention.q_proj, x_q), _linear(attention.k_proj, x_kv), _linear(attention.v_proj, x_kv)
        if (cached := self._cached[layer]) is not None:
            k, v = torch.cat((cached[0], k), dim=1), torch.cat((cached[1], v), dim=1)
        self._cached[layer] = k, v
        q, k, v = (rearrange(x, "b n (h c) -> b h n c", h=attention.num_heads) for x in (q, k, v))
        q = q * q.shape[-1] ** -0.5
        if angles is not None:
            q, k = _rotate(q, angles), _rotate(k, angles)
        future = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(k.shape[2] - q.shape[2] + 1)
        scores = torch.einsum("b h i c, b h j c -> b h i j", q, k).masked_fill(future, -torch.finfo(q.dtype).max)
        out = torch.einsum("b h i j, b h j c -> b h i c", scores.softmax(dim=-1), v)
        return _linear(attention.o_proj, rearrange(out, "b h n c -> b n (h c)"))


def _linear(layer: torch.nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def _mlp(mlp: MLP, x: Tensor) -> Tensor:
    return _linear(mlp.down, mlp.activate(_linear(mlp.up, x)))


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    angles = angles[-x.shape[2] :]
    first, second, rest = x.split((angles.shape[-1], angles.shape[-1], x.shape[-1] - 2 * angles.shape[-1]), dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)
