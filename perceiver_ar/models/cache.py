"""Keys and values kept between decoding steps."""

from __future__ import annotations

from torch import Tensor

from perceiver_ar.models.config import PerceiverARConfig


class KeyValueWindow:
    """The keys and values of one layer, of which the last `window` are attended to.

    Appending writes into a buffer that grows by doubling, so a step costs no copy of what is there. `slack` more
    positions than the window are kept, so that up to `slack` of the newest can be taken back exactly.
    """

    def __init__(self, window: int, slack: int = 0) -> None:
        self.window = window
        self.slack = slack
        self.length = 0
        self.buffers: list[Tensor] = []

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep (batch, heads, new, channels) tensors; return the last `window` keys and values."""
        new = keys.shape[2]
        if not self.buffers or self.length + new > self.buffers[0].shape[2]:
            self._make_room(keys, values)
        for buffer, tensor in zip(self.buffers, (keys, values), strict=True):
            buffer[:, :, self.length : self.length + new] = tensor
        self.length += new
        start = max(0, self.length - self.window)
        stored_keys, stored_values = (buffer[:, :, start : self.length] for buffer in self.buffers)
        return stored_keys, stored_values

    def _make_room(self, keys: Tensor, values: Tensor) -> None:
        kept = min(self.length, self.window + self.slack)
        room = 2 * (kept + keys.shape[2])
        old, self.buffers = self.buffers, [t.new_empty(*t.shape[:2], room, t.shape[3]) for t in (keys, values)]
        for source, target in zip(old, self.buffers, strict=False):
            target[:, :, :kept] = source[:, :, self.length - kept : self.length]
        self.length = kept

    def take_back(self, tokens: int) -> None:
        """Forget the newest `tokens` positions."""
        self.length -= tokens

    def clear(self) -> None:
        self.length = 0

    def reorder(self, rows: Tensor) -> None:
        """Replace batch row i by row ``rows[i]``: beams that live on."""
        self.buffers = [buffer.index_select(0, rows.to(buffer.device)) for buffer in self.buffers]


class PerceiverARCache:
    """Layer 0 is the cross-attention over the context, layers 1.. the self-attention among latents.

    Once all `max_latents` are in use, decoding goes on in one of two ways. *Sliding*: just feed the next token; the
    oldest latent leaves each layer's window (constant cost, drifts from the uncached result). *Refresh*:
    :meth:`restart_latents` first, then feed the restarted tokens again with the next one (with all latents restarted,
    equal to the uncached result).
    """

    def __init__(self, config: PerceiverARConfig) -> None:
        self.cross = KeyValueWindow(config.max_seq_len, slack=config.max_latents)
        self.latents = [KeyValueWindow(config.max_latents) for _ in range(config.num_layers)]
        self.tokens_seen = 0
        self.latents_seen = 0

    def must_decode_singly(self, tokens: int) -> bool:
        """Whether so many more latents would slide a window in their midst."""
        slides = self.latents_seen + tokens > self.latents[0].window or self.tokens_seen + tokens > self.cross.window
        return tokens > 1 and slides

    def restart_latents(self, tokens: int) -> None:
        """Drop all latents and un-see the newest `tokens` (at most `max_latents`), to be fed again as latents."""
        self.cross.take_back(tokens)
        self.tokens_seen -= tokens
        self.latents_seen = 0
        for layer in self.latents:
            layer.clear()

    def reorder(self, rows: Tensor) -> None:
        for layer in (self.cross, *self.latents):
            layer.reorder(rows)

    def advance(self, tokens: int, latents: int) -> None:
        """Count `tokens` more as seen, `latents` of which went through the stack."""
        self.tokens_seen += tokens
        self.latents_seen += latents
