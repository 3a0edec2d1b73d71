"""`PerceiverARCache` as `transformers` wants to see a cache."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Cache

from perceiver_ar.models.cache import PerceiverARCache
from perceiver_ar.models.config import PerceiverARConfig


class PerceiverARHFCache(Cache):
    """What `generate` keeps between steps: the model works on `.state`, `generate` asks for length, beams and drafts.

    With `static_tokens`, it is a static cache for so many tokens (see `PerceiverARCache`).
    """

    def __init__(self, config: PerceiverARConfig, static_tokens: int | None = None) -> None:
        super().__init__(layers=[])
        self.config = config
        self.static_tokens = static_tokens
        self.reset()

    def reset(self) -> None:
        self.state = PerceiverARCache(self.config, self.static_tokens)
        self.tokens_unread = 0
        """Tokens of texts longer than the context, which no layer has seen."""
        self.latents_next: int | None = None
        """How many of the tokens given after a restart are latents."""
        self.tokens_shared = 0
        """Tokens at the beginning that are the same in all beams of a prompt."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens given so far (layer 0), or latents (the other layers)."""
        return self.state.latents_seen if layer_idx else self.tokens_unread + self.state.tokens_seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """No limit: the oldest positions leave the window."""
        return -1

    @property
    def is_compileable(self) -> bool:
        return self.state.is_static

    @property
    def is_croppable(self) -> bool:
        return not self.state.is_static

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest ``-tokens_to_remove`` tokens; `transformers` counts them negatively.

        Raises ValueError as `PerceiverARCache.crop` does.
        """
        if tokens_to_remove:
            self.state.crop(-tokens_to_remove)

    def restart_latents(self, tokens: int, latents: int) -> None:
        """Un-see the newest `tokens`, to be given again; the last `latents` of what is given next are the only ones."""
        self.state.restart_latents(tokens)
        self.latents_next = latents

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let row i go on from row ``beam_idx[i]``, a beam of the same prompt."""
        self.state.reorder_newest(beam_idx, self.get_seq_length() - self.tokens_shared)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.state.reorder(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.state.reorder(torch.arange(self.batch_size).repeat_interleave(repeats))

    @property
    def batch_size(self) -> int:
        """Rows of what is kept; -1 before anything is."""
        buffers = self.state.cross.buffers
        return len(buffers[0][0]) if buffers else -1
