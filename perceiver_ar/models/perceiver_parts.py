"""What the encoder and the decoder of Perceiver and Perceiver IO are made of. Sizes are in channels or layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from perceiver_ar.models.config_checks import (
    fraction_problems,
    head_problems,
    raise_problems,
    scale_problems,
    too_small,
)

Sharing = Literal["none", "except_first", "all"]
Activation = Literal["gelu", "geglu"]


def distinct(uses: int, sharing: Sharing) -> int:
    """How many sets of weights serve so many uses."""
    return {"none": uses, "except_first": min(uses, 2), "all": 1}[sharing]


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Latents that read the inputs, and blocks of self-attention layers between.

    The order is: cross-attention, block, cross-attention, block, ... until `num_cross_attentions` are used up, then the
    remaining blocks.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    num_latents: int = 512
    latent_channels: int = 1024

    cross_attention_heads: int = 1
    self_attention_heads: int = 8
    cross_attention_qk_channels: int | None = None
    """Queries' and keys' channels, of all heads together; ``None`` is the channels of the inputs."""
    cross_attention_v_channels: int | None = None
    """Values' channels, of all heads together; ``None`` is those of queries and keys."""
    self_attention_qk_channels: int | None = None
    """As in the cross-attention, but ``None`` is `latent_channels`."""
    self_attention_v_channels: int | None = None

    num_cross_attentions: int = 1
    """How many blocks read the inputs before they run: the first ones."""
    num_blocks: int = 8
    layers_per_block: int = 6
    """Self-attention layers of each block."""
    cross_attention_sharing: Sharing = "except_first"
    """Which cross-attentions have the same weights: none, all but the first (the first paper), all."""
    self_attention_sharing: Sharing = "all"
    """Which blocks have the same weights; layers of one block never do."""

    cross_attention_widening: float = 1.0
    """Hidden channels of the cross-attention's MLP, as a multiple of `latent_channels`."""
    self_attention_widening: float = 1.0
    cross_attention_residual: bool = True
    """Add what the latents read to the latents, instead of putting it in their place."""
    mlp: Activation = "gelu"
    qkv_bias: bool = True

    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    sequence_dropout: float = 0.0
    """Fraction of the input elements left out of each training sample: gathered away before the latents read."""
    init_scale: float = 0.02
    """Standard deviation of initial weights."""

    def __post_init__(self) -> None:
        raise_problems(self._problems())

    def _problems(self) -> Iterator[str]:
        sizes = ["num_latents", "latent_channels", "cross_attention_heads", "self_attention_heads"]
        sizes += ["num_cross_attentions", "num_blocks", "layers_per_block"]
        sizes += [f"{kind}_attention_{of}_channels" for kind in ("cross", "self") for of in ("qk", "v")]
        if small := list(too_small(self, sizes)):
            yield from small
            return
        if self.num_cross_attentions > self.num_blocks:
            yield f"num_cross_attentions ({self.num_cross_attentions}) must be at most num_blocks ({self.num_blocks})"
        qk = self.self_attention_qk_channels or self.latent_channels
        yield from head_problems("self_attention", self.self_attention_heads, qk, self.self_attention_v_channels)
        for name in ("cross_attention_widening", "self_attention_widening"):
            if (value := getattr(self, name)) * self.latent_channels < 1:
                yield f"{name} ({value}) must leave at least 1 hidden channel"
        yield from fraction_problems(self, ("attention_dropout", "residual_dropout", "sequence_dropout"))
        yield from scale_problems(self)

    def problems_with_inputs(self, input_channels: int) -> Iterator[str]:
        """What is wrong for inputs of so many channels, a line each."""
        qk = self.cross_attention_qk_channels or input_channels
        yield from head_problems(
            "encoder.cross_attention", self.cross_attention_heads, qk, self.cross_attention_v_channels
        )

    @property
    def distinct_cross_attentions(self) -> int:
        """Cross-attentions with weights of their own."""
        return distinct(self.num_cross_attentions, self.cross_attention_sharing)

    @property
    def distinct_blocks(self) -> int:
        """Blocks with weights of their own."""
        return distinct(self.num_blocks, self.self_attention_sharing)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A cross-attention in which output queries read the latents. Queries and outputs belong to the models."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    cross_attention_heads: int = 1
    qk_channels: int | None = None
    """Queries' and keys' channels, of all heads together; ``None`` is the channels of the latents."""
    v_channels: int | None = None
    """Values' channels, of all heads together; ``None`` is those of queries and keys."""
    widening: float = 1.0
    """Hidden channels of the MLP, as a multiple of the queries' channels."""
    cross_attention_residual: bool = True
    """Add what the queries read to the queries, instead of putting it in their place, as masked LMs and flow do."""
    mlp: Activation = "gelu"
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    init_scale: float = 0.02
    """Standard deviation of initial weights."""

    def __post_init__(self) -> None:
        raise_problems(self._problems())

    def _problems(self) -> Iterator[str]:
        yield from too_small(self, ("cross_attention_heads", "qk_channels", "v_channels"))
        if self.widening <= 0:
            yield f"widening ({self.widening}) must be positive"
        yield from fraction_problems(self, ("attention_dropout", "residual_dropout"))
        yield from scale_problems(self)

    def problems_with(self, query_channels: int, latent_channels: int) -> Iterator[str]:
        """What is wrong for queries and latents of so many channels, a line each."""
        if 0 < self.widening * query_channels < 1:
            yield f"decoder.widening ({self.widening}) must leave at least 1 hidden channel"
        qk = self.qk_channels or latent_channels
        yield from head_problems("decoder", self.cross_attention_heads, qk, self.v_channels)
