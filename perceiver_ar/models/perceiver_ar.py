"""Perceiver AR (https://arxiv.org/abs/2202.07765): a long context read by few latents, causally."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from perceiver_ar.blocks.attention import MultiHeadAttention
from perceiver_ar.blocks.checkpointing import Checkpointing, run_layer
from perceiver_ar.blocks.cross_entropy import TokenLoss, chunked_cross_entropy
from perceiver_ar.blocks.layers import MLP, CrossAttentionLayer, SelfAttentionLayer, make_norm
from perceiver_ar.blocks.linear import Linear, linear
from perceiver_ar.blocks.positions import RotaryAngles, restart_positions, rotary_frequencies, token_positions
from perceiver_ar.blocks.segments import Segments
from perceiver_ar.models.config import PRESETS, PerceiverARConfig

if TYPE_CHECKING:
    from perceiver_ar.models.cache import PerceiverARCache


__all__ = ["PRESETS", "PerceiverAR", "PerceiverARConfig", "PerceiverAROutput", "draw_prefix_keep"]


@dataclass
class PerceiverAROutput:
    hidden: Tensor
    """Final latents (batch, N, num_channels), after the output norm where there is one."""
    logits: Tensor | None
    """(batch, N or fewer, vocab_size); None when targets were given: the loss never holds them all."""
    loss: TokenLoss | None


class TokenEmbedding(nn.Module):
    """(batch, length) ids -> (batch, length, channels): tokens, plus learned positions where configured."""

    def __init__(self, config: PerceiverARConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.input_channels)
        self.positions = nn.Embedding(config.max_seq_len, config.input_channels) if config.learned_positions else None

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        embedded = self.tokens(input_ids)
        return embedded if self.positions is None else embedded + self.positions(positions)


class PerceiverAR(nn.Module):
    """Next-token model whose last tokens, the latents, read the whole context once and then only each other."""

    def __init__(self, config: PerceiverARConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing: Checkpointing = "none"
        self.embed = TokenEmbedding(config)
        self.latent_projection = (
            Linear(config.input_channels, config.num_channels) if config.latent_projection else nn.Identity()
        )
        self.cross_attention = _cross_attention_layer(config)
        self.self_attention = nn.ModuleList(_self_attention_layer(config) for _ in range(config.num_layers))
        self.output_norm = make_norm(config.norm, config.num_channels) if config.output_norm else nn.Identity()
        self.unembed = None if config.tied_output else Linear(config.num_channels, config.vocab_size, bias=False)
        self.output_bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.output_bias else None
        self.apply(self.initialize)
        self._initialize_residual_outputs()

    def initialize(self, module: nn.Module) -> None:
        """Draw one module's own weights from N(0, init_scale)."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.init_scale)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if module is self and self.output_bias is not None:
            nn.init.zeros_(self.output_bias)

    def _initialize_residual_outputs(self) -> None:
        config = self.config
        if config.depth_scaled_init:
            scale = config.init_scale / (2 * (config.num_layers + 1)) ** 0.5
            for layer in (self.cross_attention, *self.self_attention):
                nn.init.normal_(layer.attention.o_proj.weight, std=scale)
                nn.init.normal_(layer.mlp.down.weight, std=scale)
        if config.zero_init_output:
            nn.init.zeros_(self.output_weight)

    @property
    def output_weight(self) -> Tensor:
        """The output projection's matrix (vocab_size, num_channels)."""
        return self.embed.tokens.weight if self.unembed is None else self.unembed.weight

    def forward(
        self,
        input_ids: Tensor,
        prefix_length: int,
        *,
        key_valid: Tensor | None = None,
        segments: Tensor | None = None,
        prefix_keep: Tensor | None = None,
        cache: PerceiverARCache | None = None,
        targets: Tensor | None = None,
        logits_to_keep: int = 0,
    ) -> PerceiverAROutput:
        """Predict the token after each latent.

        `input_ids` (batch, T): the first `prefix_length` tokens are read only, the N others are latents.
        `key_valid` (batch, T) is False at padding, which may be anywhere and which nothing attends to; None means no
        padding. `segments` (batch, T) numbers the documents packed into a row, ascending from 0: each is read as if it
        were alone, with positions of its own. `prefix_keep` (batch, K) holds the prefix positions to read, ascending
        (see `draw_prefix_keep`). `targets` (batch, N) asks for the loss instead of logits; -100 is ignored.
        `logits_to_keep` asks for the logits of so many latents, the last ones, instead of all.
        With a `cache`, `input_ids` and `key_valid` are those of the tokens after those already seen. After the first
        call all new tokens are latents, any number of them: each has a window of its own.

        Raises ValueError where N is not in [1, max_latents], T exceeds max_seq_len, or `segments` or `prefix_keep` meet
        a cache.
        """
        if cache is not None and not (segments is None and prefix_keep is None):
            raise ValueError("segments and prefix_keep are for whole windows: a cache takes neither")
        hidden = self._latents(input_ids, prefix_length, key_valid, segments, prefix_keep, cache)
        if targets is None:
            logits = linear(hidden[:, -logits_to_keep:], self.output_weight, self.output_bias)
            return PerceiverAROutput(hidden, logits, None)
        loss = chunked_cross_entropy(
            hidden.flatten(0, 1), self.output_weight, self.output_bias, targets.flatten(), z_loss=self.config.z_loss
        )
        return PerceiverAROutput(hidden, None, loss)

    def _latents(
        self,
        input_ids: Tensor,
        prefix_length: int,
        key_valid: Tensor | None,
        segments: Tensor | None,
        prefix_keep: Tensor | None,
        cache: PerceiverARCache | None,
    ) -> Tensor:
        config = self.config
        length = input_ids.shape[1]
        decoding = cache is not None and cache.decoding
        num_latents = length if decoding else self._count_latents(length, prefix_length)
        step = None if cache is None else cache.step(input_ids, num_latents, key_valid)
        if step is not None:
            positions = step.positions
        elif key_valid is None:
            positions = torch.arange(length, device=input_ids.device)[None]
        else:
            positions = token_positions(key_valid)
        if segments is not None:
            positions = restart_positions(positions, segments)
        if step is None:
            segments = _padding_as_document(segments, key_valid)
        if prefix_keep is not None:
            input_ids, positions, segments = _gather_kept(prefix_keep, prefix_length, input_ids, positions, segments)
        documents = None if segments is None else Segments.of_window(segments, num_latents)
        latent_documents = None if documents is None else documents.among_queries()

        context = self.embed(input_ids, positions)
        rotary_k = self._rotary(positions, config.input_channels)
        latents = self._run(
            self.cross_attention,
            self.latent_projection(context[:, -num_latents:]),
            context,
            segments=documents,
            rotary_q=None if rotary_k is None else rotary_k.last(num_latents),
            rotary_k=rotary_k,
            store=None if step is None else step.cross,
        )
        rotary = self._rotary(positions[:, -num_latents:], config.num_channels)
        rotary_layers = config.num_layers if config.rotary_layers is None else config.rotary_layers
        for i, layer in enumerate(self.self_attention):
            latents = self._run(
                layer,
                latents,
                segments=latent_documents,
                rotary=rotary if i < rotary_layers else None,
                store=None if step is None else step.latents[i],
            )
        return self.output_norm(latents)

    def _count_latents(self, length: int, prefix_length: int) -> int:
        config = self.config
        num_latents = length - prefix_length
        if prefix_length >= 0 and 1 <= num_latents <= config.max_latents and length <= config.max_seq_len:
            return num_latents
        raise ValueError(
            f"{length} tokens with prefix_length {prefix_length} make {num_latents} latents; this model takes "
            f"1 to {config.max_latents} latents and at most {config.max_seq_len} tokens"
        )

    def _rotary(self, positions: Tensor, channels: int) -> RotaryAngles | None:
        config = self.config
        rotated = int(config.rotary_fraction * channels / config.num_heads) // 2 * 2
        if rotated == 0:
            return None
        frequencies = rotary_frequencies(
            rotated, config.rotary_base, endpoint=config.rotary_endpoint, device=positions.device
        )
        return RotaryAngles.at(positions, frequencies)

    def _run(self, layer: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        return run_layer(self.activation_checkpointing, layer, *args, **kwargs)


def _cross_attention_layer(config: PerceiverARConfig) -> CrossAttentionLayer:
    attention = MultiHeadAttention(
        config.num_heads,
        config.num_channels,
        config.input_channels,
        qk_channels=config.input_channels,
        causal=True,
        qkv_bias=config.qkv_bias,
        output_bias=config.cross_attention_output_bias,
        qk_norm=config.qk_norm,
        dropout=config.attention_dropout,
    )
    return CrossAttentionLayer(
        attention,
        _mlp(config, config.cross_attention_widening),
        (
            make_norm(config.norm, config.num_channels),
            make_norm(config.norm, config.input_channels),
            make_norm(config.norm, config.num_channels),
        ),
        dropout=config.residual_dropout,
        query_norm_on_latents=config.kv_norm == "prefix",
    )


def _self_attention_layer(config: PerceiverARConfig) -> SelfAttentionLayer:
    attention = MultiHeadAttention(
        config.num_heads,
        config.num_channels,
        config.num_channels,
        causal=True,
        qkv_bias=config.qkv_bias,
        output_bias=config.self_attention_output_bias,
        qk_norm=config.qk_norm,
        dropout=config.attention_dropout,
    )
    norms = (make_norm(config.norm, config.num_channels), make_norm(config.norm, config.num_channels))
    return SelfAttentionLayer(
        attention, _mlp(config, config.self_attention_widening), norms, dropout=config.residual_dropout
    )


def _mlp(config: PerceiverARConfig, widening: float) -> MLP:
    return MLP(config.num_channels, int(widening * config.num_channels), config.mlp, bias=config.mlp_bias)


def _padding_as_document(segments: Tensor | None, key_valid: Tensor | None) -> Tensor | None:
    """`segments` in which the padding of a row is a document by itself, the first, so that nobody else attends to it.

    Padding to the left then leaves documents end to end, for which there are kernels without masks.
    """
    if key_valid is None:
        return segments
    if segments is None:
        segments = torch.zeros_like(key_valid, dtype=torch.int32)
    return segments.masked_fill(~key_valid, -1)


def _gather_kept(
    prefix_keep: Tensor, prefix_length: int, input_ids: Tensor, positions: Tensor, segments: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The kept prefix tokens and all latents: what is known of a token travels with it."""
    latents = torch.arange(prefix_length, input_ids.shape[1], device=prefix_keep.device)
    read = torch.cat((prefix_keep, latents.expand(len(prefix_keep), -1)), dim=1)
    positions = positions.expand(len(read), -1).gather(1, read)
    return input_ids.gather(1, read), positions, None if segments is None else segments.gather(1, read)


def draw_prefix_keep(seed: int, sample_indices: Tensor, prefix_length: int, dropout: float) -> Tensor | None:
    """Which prefix positions each sample reads under prefix dropout, or None where it reads all of them.

    (batch,) sample numbers -> (batch, K) ascending positions, K = prefix_length - int(prefix_length * dropout). A pure
    function of (seed, sample), equal on every device and for every way of splitting a batch.
    """
    kept = prefix_length - int(prefix_length * dropout)
    if kept == prefix_length:
        return None
    positions = torch.arange(prefix_length, device=sample_indices.device)
    stream = _mix(_mix(torch.full_like(sample_indices, seed)) ^ sample_indices)
    scores = _mix(stream[:, None] ^ positions)
    return scores.argsort(dim=1, stable=True)[:, :kept].sort(dim=1).values


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's output function (Steele et al. 2014) on int64, whose products wrap as unsigned ones do."""
    x = x + -0x61C8864680B583EB
    x = (x ^ _shift_right(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shift_right(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)
