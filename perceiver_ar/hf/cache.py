"""`PerceiverARCache` as `transformers` wants to see a cache."""

from __future__ import annotations

from torch import Tensor
from transformers import Cache

from perceiver_ar.models.cache import PerceiverARCache
from perceiver_ar.models.config import PerceiverARConfig


class PerceiverARHFCache(Cache):
    """What `generate` keeps between steps; the model works on `.state`, `generate` only asks for length and beams."""

    def __init__(self, config: PerceiverARConfig) -> None:
        super().__init__(layers=[])
        self.config = config
        self.state = PerceiverARCache(config)
        self.tokens_unread = 0
        """Tokens at the beginning of a prompt longer than the context, which no layer has seen."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens given so far (layer 0), or latents (the other layers)."""
        return self.state.latents_seen if layer_idx else self.tokens_unread + self.state.tokens_seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """No limit: the oldest positions leave the window."""
        return -1

    @property
    def is_croppable(self) -> bool:
        """No: a latent that has left the window cannot come back."""
        return False

    def crop(self, tokens_to_remove: int) -> None:
        """Raises NotImplementedError."""
        raise NotImplementedError("a Perceiver AR cache cannot take tokens back")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.state.reorder(beam_idx)

    def reset(self) -> None:
        self.state = PerceiverARCache(self.config)
        self.tokens_unread = 0
