"""Perceiver IO (https://arxiv.org/abs/2107.14795): the decoder, and what its models have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from perceiver_ar.blocks.attention import MultiHeadAttention
from perceiver_ar.blocks.checkpointing import Checkpointing, run_layer
from perceiver_ar.blocks.layers import MLP, CrossAttentionLayer, make_norm
from perceiver_ar.models.perceiver import PerceiverEncoder
from perceiver_ar.models.perceiver_parts import DecoderConfig


class PerceiverDecoder(nn.Module):
    """Output queries that read the latents."""

    queries: nn.Parameter
    """The learned ones (num_queries, query channels); None where all are made elsewhere."""

    def __init__(
        self, config: DecoderConfig, query_channels: int, latent_channels: int, num_queries: int | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing: Checkpointing = "none"
        queries = None if num_queries is None else torch.randn(num_queries, query_channels) * config.init_scale
        self.register_parameter("queries", None if queries is None else nn.Parameter(queries))
        self.cross_attention = CrossAttentionLayer(
            MultiHeadAttention(
                config.cross_attention_heads,
                query_channels,
                latent_channels,
                qk_channels=config.qk_channels or latent_channels,
                v_channels=config.v_channels,
                qkv_bias=True,
                output_bias=True,
                dropout=config.attention_dropout,
            ),
            MLP(query_channels, int(config.widening * query_channels), config.mlp, bias=True),
            (
                make_norm("layernorm", query_channels),
                make_norm("layernorm", latent_channels),
                make_norm("layernorm", query_channels),
            ),
            dropout=config.residual_dropout,
            residual=config.cross_attention_residual,
        )

    def forward(self, latents: Tensor, queries: Tensor) -> Tensor:
        """(batch, num_latents, latent channels), (K, query channels) or with a batch -> (batch, K, query channels)."""
        queries = queries.expand(len(latents), -1, -1)
        return run_layer(self.activation_checkpointing, self.cross_attention, queries, latents)


class PerceiverModel(nn.Module):
    """An input adapter, an encoder and, in most models, a decoder: what all of them have in common.

    A subclass makes the parts and what belongs to its task, and then calls ``self.apply(self.initialize)``.
    """

    input_adapter: nn.Module
    encoder: PerceiverEncoder
    decoder: PerceiverDecoder | None

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @property
    def activation_checkpointing(self) -> Checkpointing:
        return self.encoder.activation_checkpointing

    @activation_checkpointing.setter
    def activation_checkpointing(self, value: Checkpointing) -> None:
        self.encoder.activation_checkpointing = value
        if self.decoder is not None:
            self.decoder.activation_checkpointing = value

    def initialize(self, module: nn.Module) -> None:
        """Draw one module's own weights from N(0, init_scale) of the decoder, or of the encoder where it is elsewhere.

        Biases begin at 0 and norms as the identity.
        """
        part = self.decoder if self.decoder is not None and module in set(self.decoder.modules()) else self.encoder
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=part.config.init_scale)
            elif name != "weight":  # those of norms, which are ones
                nn.init.zeros_(parameter)
