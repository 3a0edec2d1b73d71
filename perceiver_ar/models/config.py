"""What a Perceiver AR is made of: the configuration and the published families as presets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal


@dataclass(frozen=True, kw_only=True)
class PerceiverARConfig:
    """Everything that decides what a Perceiver AR computes. Sizes are in tokens, channels or layers.

    Three published families are points in this one space, see :meth:`preset`.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    vocab_size: int
    """Rows of the token embedding."""
    max_seq_len: int = 2048
    """Context: prefix plus latents."""
    max_latents: int = 256
    """Positions at the end of the context that go through the deep stack."""
    num_channels: int = 512
    """Width of the latents."""
    num_input_channels: int | None = None
    """Width of the token embedding; ``None`` is `num_channels`. Another width needs `latent_projection`."""
    num_heads: int = 8
    num_layers: int = 8
    """Self-attention layers over the latents, after the one cross-attention layer."""

    latent_projection: bool = False
    """Latent queries are a linear map of the embeddings instead of the embeddings themselves."""
    learned_positions: bool = False
    """Add a learned position embedding of `max_seq_len` rows to the tokens."""
    rotary_fraction: float = 1.0
    """Fraction of each head's channels that rotary embeddings rotate."""
    rotary_base: float = 10_000.0
    """Base (largest wavelength / 2 pi) of the rotary frequencies."""
    rotary_endpoint: bool = False
    """Frequencies reach `1 / rotary_base` itself, as in google-research/perceiver-ar."""
    rotary_layers: int | None = None
    """How many self-attention layers, from the first, are rotated; ``None`` is all. Cross-attention always is."""

    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    kv_norm: Literal["all", "prefix"] = "all"
    """Which cross-attention inputs `kv_norm` normalises; ``prefix`` leaves latents to `q_norm` (perceiver-io)."""
    qk_norm: bool = False
    """RMS-normalise queries and keys per head, before rotation (https://arxiv.org/abs/2010.04245)."""
    qkv_bias: bool = False
    cross_attention_output_bias: bool = False
    self_attention_output_bias: bool = False

    mlp: Literal["gelu", "geglu", "swiglu", "squared_relu"] = "squared_relu"
    mlp_bias: bool = False
    cross_attention_widening: float = 4.0
    """Hidden channels of the cross-attention layer's MLP, as a multiple of `num_channels`."""
    self_attention_widening: float = 4.0

    output_norm: bool = True
    tied_output: bool = True
    """The output projection is the token embedding's matrix."""
    output_bias: bool = False
    z_loss: float = 1e-4
    """Weight of the squared log-partition term of the loss (PaLM, https://arxiv.org/abs/2204.02311)."""

    prefix_dropout: float = 0.0
    """Fraction of prefix tokens left out of each training sample: gathered away before any projection."""
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0

    init_scale: float = 0.02
    """Standard deviation of initial weights."""
    depth_scaled_init: bool = True
    """Scale the initial residual-branch outputs by ``1 / sqrt(2 (num_layers + 1))`` (GPT-2)."""
    zero_init_output: bool = False
    """Start an untied output projection at zero."""

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise ValueError("; ".join(problems))

    def _problems(self) -> Iterator[str]:
        sizes = ("vocab_size", "max_seq_len", "max_latents", "num_channels", "num_heads", "num_layers")
        too_small = [f"{name} ({getattr(self, name)}) must be at least 1" for name in sizes if getattr(self, name) < 1]
        if self.num_input_channels is not None and self.num_input_channels < 1:
            too_small.append(f"num_input_channels ({self.num_input_channels}) must be at least 1, or null")
        if too_small:
            yield from too_small
            return
        if self.max_latents > self.max_seq_len:
            yield f"max_latents ({self.max_latents}) must be at most max_seq_len ({self.max_seq_len})"
        for name, value in (("num_channels", self.num_channels), ("num_input_channels", self.input_channels)):
            if value % self.num_heads:
                yield f"{name} ({value}) must be divisible by num_heads ({self.num_heads})"
        if self.input_channels != self.num_channels and not self.latent_projection:
            yield "num_input_channels other than num_channels needs latent_projection: true"
        if self.input_channels != self.num_channels and self.tied_output:
            yield "num_input_channels other than num_channels needs tied_output: false"
        if self.zero_init_output and self.tied_output:
            yield "zero_init_output needs tied_output: false"
        if self.rotary_layers is not None and not 0 <= self.rotary_layers <= self.num_layers:
            yield f"rotary_layers ({self.rotary_layers}) must be between 0 and num_layers ({self.num_layers})"
        for name in ("prefix_dropout", "attention_dropout", "residual_dropout"):
            if not 0 <= (value := getattr(self, name)) < 1:
                yield f"{name} ({value}) must be in [0, 1)"
        if not 0 <= self.rotary_fraction <= 1:
            yield f"rotary_fraction ({self.rotary_fraction}) must be in [0, 1]"
        for name in ("rotary_base", "init_scale"):
            if (value := getattr(self, name)) <= 0:
                yield f"{name} ({value}) must be positive"
        for name in ("cross_attention_widening", "self_attention_widening"):
            if (value := getattr(self, name)) * self.num_channels < 1:
                yield f"{name} ({value}) must leave at least 1 hidden channel"
        if self.z_loss < 0:
            yield f"z_loss ({self.z_loss}) must not be negative"

    @property
    def input_channels(self) -> int:
        return self.num_channels if self.num_input_channels is None else self.num_input_channels

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> PerceiverARConfig:
        """The named family (a key of `PRESETS`) with `overrides` on top."""
        return cls(**{**PRESETS[name], **overrides})


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "perceiver_io": dict(
        learned_positions=True,
        rotary_fraction=0.5,
        rotary_layers=1,
        norm="layernorm",
        kv_norm="prefix",
        cross_attention_output_bias=True,
        mlp="gelu",
        output_norm=False,
        output_bias=True,
        z_loss=0.0,
        prefix_dropout=0.5,
        depth_scaled_init=False,
    ),
    "paper": dict(
        latent_projection=True,
        rotary_fraction=0.5,
        rotary_base=2048.0,  # its base is the context: set both together
        rotary_endpoint=True,
        norm="layernorm",
        qkv_bias=True,
        cross_attention_output_bias=True,
        self_attention_output_bias=True,
        mlp="squared_relu",
        mlp_bias=True,
        tied_output=False,
        output_bias=True,
        residual_dropout=0.1,
        depth_scaled_init=False,
        zero_init_output=True,
    ),
}
"""`default` is ours, `perceiver_io` is krasserm/perceiver-io, `paper` is google-research/perceiver-ar."""
