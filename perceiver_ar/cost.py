"""What a model costs before it is built: parameters and FLOPs, and of a Perceiver AR its activation memory too.

A FLOP count is of multiplications and additions in matrix products, as is usual; norms, rotations and the embedding
look-up are left out. Causal attention counts half its square: what a kernel that skips the masked half computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from perceiver_ar.blocks.attend import using_backend
from perceiver_ar.models.config import PerceiverARConfig
from perceiver_ar.models.perceiver_ar import PerceiverAR


def parameter_counts(config: PerceiverARConfig) -> dict[str, int]:
    """Parameters of each top-level part of the model; a tied output projection counts once, as embedding."""
    return parameter_counts_of(partial(PerceiverAR, config))


def parameter_counts_of(build: Callable[[], nn.Module]) -> dict[str, int]:
    """Parameters of each top-level part of the model that `build` makes; shared ones count once."""
    with torch.device("meta"):
        model = build()
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = name.split(".")[0]
        counts[part] = counts.get(part, 0) + parameter.numel()
    return counts


def count_parameters(config: PerceiverARConfig) -> int:
    """All parameters of the model."""
    return sum(parameter_counts(config).values())


def forward_flops_of(build: Callable[[], nn.Module], *inputs: Tensor) -> int:
    """FLOPs of one forward pass, in training, of the model that `build` makes; nothing is computed.

    Only the shapes and dtypes of the `inputs` matter: they may be on the meta device. Attention counts whole squares.
    """
    # The kernels of another back end may not run there, nor be counted.
    with torch.device("meta"), using_backend("reference"), FlopCounterMode(display=False) as counter:
        model = build().requires_grad_(False)
        model(*(x.to("meta") for x in inputs))
    return counter.get_total_flops()


@dataclass(frozen=True)
class Flops:
    """FLOPs of one forward pass over a batch, by part."""

    prefix: float
    """Keys and values of the prefix, and every latent's attention to it: what context beyond the latents costs."""
    cross_attention: float
    """The rest of the cross-attention layer, with its MLP."""
    self_attention: float
    """The self-attention layers, with their MLPs."""
    head: float
    """Logits."""
    causal_discount: float
    """The masked halves of the latents' attention squares, which `cross_attention` and `self_attention` include."""

    @property
    def total(self) -> float:
        return self.dense_total - self.causal_discount

    @property
    def dense_total(self) -> float:
        """With whole attention squares: what `torch.utils.flop_counter` counts."""
        return self.prefix + self.cross_attention + self.self_attention + self.head


def forward_flops(
    config: PerceiverARConfig, *, batch: int = 1, prefix_length: int | None = None, num_latents: int | None = None
) -> Flops:
    """Forward FLOPs for `batch` sequences of `prefix_length` read tokens and `num_latents` latents.

    Defaults to the full context. With d channels, N latents, K = prefix + N keys and an MLP of widening 4 the total per
    latent is ``24 d^2 L + 2 N d L + 20 d^2 + (K/N) 4 d^2 + 4 K d - 2 N d + 2 d V``.
    """
    d, c = config.num_channels, config.input_channels
    n = config.max_latents if num_latents is None else num_latents
    p = config.max_seq_len - n if prefix_length is None else prefix_length
    layers = config.num_layers

    def mlp(widening: float) -> int:
        matrices = 3 if config.mlp in ("geglu", "swiglu") else 2
        return 2 * matrices * d * int(widening * d)

    latent_projection = 2 * c * d if config.latent_projection else 0
    cross = latent_projection + 2 * (2 * d * c) + 2 * (2 * c * c) + 4 * n * c + mlp(config.cross_attention_widening)
    self_attention = layers * (8 * d * d + 4 * n * d + mlp(config.self_attention_widening))
    return Flops(
        prefix=batch * p * (4 * c * c + 4 * n * c),
        cross_attention=batch * n * cross,
        self_attention=batch * n * self_attention,
        head=batch * n * 2 * d * config.vocab_size,
        causal_discount=batch * n * (2 * n * c + layers * 2 * n * d),
    )


def kept_prefix_length(config: PerceiverARConfig) -> int:
    """Prefix tokens that a full-context training sample reads after prefix dropout."""
    prefix = config.max_seq_len - config.max_latents
    return prefix - int(prefix * config.prefix_dropout)


def training_flops_per_token(config: PerceiverARConfig) -> float:
    """FLOPs per trained token, forward and backward (twice the forward), at full context and after prefix dropout."""
    return 3 * forward_flops(config, prefix_length=kept_prefix_length(config)).total / config.max_latents


def activation_bytes(config: PerceiverARConfig, *, micro_batch: int, precision: str, checkpointing: str) -> int:
    """Bytes that the forward pass keeps for the backward pass of one micro-batch, with fused attention.

    `precision` is ``bf16`` or ``fp32``; `checkpointing` as `PerceiverAR.activation_checkpointing`. Kernel workspaces,
    allocator slack and the loss's chunk of logits come on top.
    """
    width = {"bf16": 2, "fp32": 4}[precision]
    d, c, n = config.num_channels, config.input_channels, config.max_latents
    keys = kept_prefix_length(config) + n
    embedded = keys * c
    if checkpointing == "offload":
        return micro_batch * width * n * d
    if checkpointing == "full":
        return micro_batch * width * (embedded + (config.num_layers + 2) * n * d)

    def mlp(widening: float) -> float:
        hidden = widening * d * {"gelu": 2, "squared_relu": 3, "geglu": 4, "swiglu": 4}[config.mlp]
        return 2 * d + hidden

    norm = 1 if config.norm == "layernorm" else 2
    cross = (
        embedded * (1 + norm) + 2 * keys * c + n * (3 * c + 2 * d + norm * d) + n * mlp(config.cross_attention_widening)
    )
    self_attention = config.num_layers * n * ((1 + norm) * d + 5 * d + mlp(config.self_attention_widening))
    return int(micro_batch * width * (cross + self_attention + 2 * n * d))
