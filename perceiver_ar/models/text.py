"""Perceiver IO for text: masked language models and classifiers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from perceiver_ar.blocks.linear import Linear, linear
from perceiver_ar.models.perceiver import PerceiverEncoder
from perceiver_ar.models.perceiver_config import MaskedLMConfig, TextClassifierConfig
from perceiver_ar.models.perceiver_io import PerceiverDecoder, PerceiverModel


class TextInput(nn.Module):
    """(batch, n) ids -> (batch, n, channels): tokens plus learned positions."""

    def __init__(self, vocab_size: int, max_seq_len: int, channels: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, channels)
        self.positions = nn.Embedding(max_seq_len, channels)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Raises ValueError for no tokens, or more than there are positions."""
        length, longest = input_ids.shape[1], self.positions.num_embeddings
        if not 1 <= length <= longest:
            raise ValueError(f"{length} tokens: this model takes 1 to {longest}")
        return self.tokens(input_ids) + self.positions.weight[:length]


class MaskedLM(PerceiverModel):
    """Predicts tokens from all others: a learned query for each position."""

    input_adapter: TextInput
    decoder: PerceiverDecoder

    def __init__(self, config: MaskedLMConfig) -> None:
        super().__init__(config)
        self.input_adapter = TextInput(config.vocab_size, config.max_seq_len, config.num_input_channels)
        self.encoder = PerceiverEncoder(config.encoder, config.num_input_channels)
        self.decoder = PerceiverDecoder(
            config.decoder, config.query_channels, config.encoder.latent_channels, num_queries=config.max_seq_len
        )
        self.unembed = None if config.tied_output else Linear(config.query_channels, config.vocab_size, bias=False)
        self.output_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.apply(self.initialize)

    @property
    def output_weight(self) -> Tensor:
        """The output projection's matrix (vocab_size, query channels)."""
        return self.input_adapter.tokens.weight if self.unembed is None else self.unembed.weight

    def forward(self, input_ids: Tensor, key_valid: Tensor | None = None) -> Tensor:
        """(batch, n) -> logits (batch, n, vocab_size); raises as `hidden` does."""
        return linear(self.hidden(input_ids, key_valid), self.output_weight, self.output_bias)

    def hidden(self, input_ids: Tensor, key_valid: Tensor | None = None, *, positions: Tensor | None = None) -> Tensor:
        """(batch, n) -> what the output projection takes, (batch, n, query channels).

        `key_valid` (batch, n) is False at padding. `positions` (batch, K) asks for these only, (batch, K, query
        channels): where few tokens are masked, the decoder has little to do.

        Raises ValueError unless n is in [1, max_seq_len].
        """
        latents = self.encoder(self.input_adapter(input_ids), key_valid)
        queries = self.decoder.queries
        return self.decoder(latents, queries[: input_ids.shape[1]] if positions is None else queries[positions])


class TextClassifier(PerceiverModel):
    """Says which class a text is of: one learned query."""

    decoder: PerceiverDecoder

    def __init__(self, config: TextClassifierConfig) -> None:
        super().__init__(config)
        self.input_adapter = TextInput(config.vocab_size, config.max_seq_len, config.num_input_channels)
        self.encoder = PerceiverEncoder(config.encoder, config.num_input_channels)
        self.decoder = PerceiverDecoder(
            config.decoder, config.query_channels, config.encoder.latent_channels, num_queries=1
        )
        self.output = Linear(config.query_channels, config.num_classes)
        self.apply(self.initialize)

    def forward(self, input_ids: Tensor, key_valid: Tensor | None = None) -> Tensor:
        """(batch, n) -> logits (batch, num_classes); `key_valid` (batch, n) is False at padding.

        Raises ValueError unless n is in [1, max_seq_len].
        """
        latents = self.encoder(self.input_adapter(input_ids), key_valid)
        return self.output(self.decoder(latents, self.decoder.queries)[:, 0])
