"""The encoder of Perceiver (https://arxiv.org/abs/2103.03206) and Perceiver IO: few latents read a long input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from perceiver_ar.blocks.attention import MultiHeadAttention
from perceiver_ar.blocks.checkpointing import Checkpointing, run_layer
from perceiver_ar.blocks.layers import MLP, CrossAttentionLayer, SelfAttentionLayer, make_norm
from perceiver_ar.models.perceiver_parts import EncoderConfig


class PerceiverEncoder(nn.Module):
    """Latents that read the inputs, once or repeatedly, and attend to each other between.

    `cross_attention` and `self_attention` hold the layers and the blocks that have weights of their own.
    """

    def __init__(self, config: EncoderConfig, input_channels: int) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing: Checkpointing = "none"
        self.latents = nn.Parameter(torch.randn(config.num_latents, config.latent_channels) * config.init_scale)
        self.cross_attention = nn.ModuleList(
            _cross_attention_layer(config, input_channels) for _ in range(config.distinct_cross_attentions)
        )
        self.self_attention = nn.ModuleList(
            nn.ModuleList(_self_attention_layer(config) for _ in range(config.layers_per_block))
            for _ in range(config.distinct_blocks)
        )

    def forward(self, inputs: Tensor, key_valid: Tensor | None = None) -> Tensor:
        """(batch, M, input channels) -> latents (batch, num_latents, latent_channels).

        `key_valid` (batch, M) is False at padding, which nothing attends to.
        """
        config = self.config
        if self.training and config.sequence_dropout:
            inputs, key_valid = drop_elements(inputs, key_valid, config.sequence_dropout)
        latents = self.latents.expand(len(inputs), -1, -1)
        for i in range(config.num_blocks):
            if i < config.num_cross_attentions:
                # Uses beyond the distinct weights take the last ones: those that are shared.
                cross_attention = self.cross_attention[min(i, len(self.cross_attention) - 1)]
                latents = self._run(cross_attention, latents, inputs, key_valid=key_valid)
            for layer in self.self_attention[min(i, len(self.self_attention) - 1)]:  # type: ignore[attr-defined]
                latents = self._run(layer, latents)
        return latents

    def _run(self, layer: nn.Module, *args: Tensor, **kwargs: Tensor | None) -> Tensor:
        return run_layer(self.activation_checkpointing, layer, *args, **kwargs)


def drop_elements(inputs: Tensor, key_valid: Tensor | None, dropout: float) -> tuple[Tensor, Tensor | None]:
    """Keep ``M - int(M * dropout)`` random elements of each row of `inputs` (batch, M, channels), in their order."""
    batch, length, channels = inputs.shape
    kept = length - int(length * dropout)
    scores = torch.rand(batch, length, device=inputs.device)
    keep = scores.topk(kept, dim=1).indices.sort(dim=1).values
    inputs = inputs.gather(1, keep[:, :, None].expand(-1, -1, channels))
    return inputs, None if key_valid is None else key_valid.gather(1, keep)


def _cross_attention_layer(config: EncoderConfig, input_channels: int) -> CrossAttentionLayer:
    channels = config.latent_channels
    attention = MultiHeadAttention(
        config.cross_attention_heads,
        channels,
        input_channels,
        qk_channels=config.cross_attention_qk_channels or input_channels,
        v_channels=config.cross_attention_v_channels,
        qkv_bias=config.qkv_bias,
        output_bias=True,
        dropout=config.attention_dropout,
    )
    return CrossAttentionLayer(
        attention,
        MLP(channels, int(config.cross_attention_widening * channels), config.mlp, bias=True),
        (make_norm("layernorm", channels), make_norm("layernorm", input_channels), make_norm("layernorm", channels)),
        dropout=config.residual_dropout,
        residual=config.cross_attention_residual,
    )


def _self_attention_layer(config: EncoderConfig) -> SelfAttentionLayer:
    channels = config.latent_channels
    attention = MultiHeadAttention(
        config.self_attention_heads,
        channels,
        channels,
        qk_channels=config.self_attention_qk_channels,
        v_channels=config.self_attention_v_channels,
        qkv_bias=config.qkv_bias,
        output_bias=True,
        dropout=config.attention_dropout,
    )
    return SelfAttentionLayer(
        attention,
        MLP(channels, int(config.self_attention_widening * channels), config.mlp, bias=True),
        (make_norm("layernorm", channels), make_norm("layernorm", channels)),
        dropout=config.residual_dropout,
    )
