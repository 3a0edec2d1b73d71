"""Keys and values kept between decoding steps.

Two kinds of buffers compute the same: `KeyValueWindow` grows and hands out what is in use, `KeyValueRing` has its final
size from the start and hands out all of it with a mask, so that every step has the shapes of the one before.
"""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from perceiver_ar.blocks.attention import KeyValueStore
from perceiver_ar.blocks.positions import token_positions
from perceiver_ar.models.config import PerceiverARConfig

MIN_SLACK = 64
"""More tokens than assisted decoding drafts at a time, which the smallest of models must be able to take back."""


class Place(NamedTuple):
    """Where new positions go in a buffer, and what their queries attend to."""

    write: slice | Tensor
    read: slice
    visible: Tensor | None
    """(batch or 1, queries, read) bool; None where each query sees all of `read` up to itself, the last one all."""


class _KeyValues:
    """The keys and values of some layers that keep the same positions: those of the last `window`, at least.

    A query sees the last `window` positions up to its own. Queries placed `together` see no more than the last of them
    does, which is what a window of tokens that is read as a whole shows to each of its latents.
    """

    def __init__(self, window: int, room: int) -> None:
        self.window = window
        self.room = room
        self.buffers: list[tuple[Tensor, Tensor]] = []
        self.valid: Tensor | None = None
        """(batch, room) bool, False at padding; None while there is none."""

    def append(self, layer: int, place: Place, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keep (batch, heads, new, channels) tensors of the layer; return what `place` says, and its mask."""
        if layer == len(self.buffers):
            # Zeros, since what a mask hides is still multiplied by its weight of 0.
            new_keys, new_values = (t.new_zeros(*t.shape[:2], self.room, t.shape[3]) for t in (keys, values))
            self.buffers.append((new_keys, new_values))
        stored_keys, stored_values = self.buffers[layer]
        stored_keys[:, :, place.write] = keys
        stored_values[:, :, place.write] = values
        return stored_keys[:, :, place.read], stored_values[:, :, place.read], place.visible

    def note(self, write: slice | Tensor, valid: Tensor) -> Tensor:
        """Keep which of the new positions are `valid` (batch, new); return the same of all, (batch, room)."""
        if self.valid is None:
            self.valid = valid.new_ones(len(valid), self.room)
        self.valid[:, write] = valid
        return self.valid

    def reorder(self, rows: Tensor) -> None:
        """Replace batch row i by row ``rows[i]``."""
        self.buffers = [
            (keys.index_select(0, rows.to(keys.device)), values.index_select(0, rows.to(values.device)))
            for keys, values in self.buffers
        ]
        if self.valid is not None:
            self.valid = self.valid.index_select(0, rows.to(self.valid.device))

    def newest(self, positions: int) -> slice | Tensor:
        """Where the newest `positions` are, or as many of them as there are."""
        raise NotImplementedError

    def reorder_newest(self, rows: Tensor, positions: int) -> None:
        """Replace the newest `positions` of batch row i by those of row ``rows[i]``."""
        newest = self.newest(positions)
        for buffer in chain.from_iterable(self.buffers):
            buffer[:, :, newest] = buffer[:, :, newest].index_select(0, rows.to(buffer.device))


class KeyValueWindow(_KeyValues):
    """Buffers that grow, so that a step costs no copy of what is there and attention without padding needs no mask.

    `slack` more positions than the window are kept: so many of the newest can be taken back exactly, besides those
    placed last.
    """

    def __init__(self, window: int, slack: int) -> None:
        super().__init__(window, room=0)
        self.slack = slack
        self.seen = 0
        self.length = 0
        """Of the positions seen, how many the buffers hold."""

    def place(self, new: int, queries: int, valid: Tensor | None, device: torch.device, *, together: bool) -> Place:
        """Where `new` more positions go, of which the last ones are `queries`.

        `valid` (batch, new) is False at padding, and needed once there is some.
        """
        if self.length + new > self.room:
            self._make_room(new)
        begin, end = self.length, self.length + new
        self.length = end
        self.seen += new
        first = max(0, end - self.window - (0 if together else queries - 1))
        write, read = slice(begin, end), slice(first, end)
        visible = None
        if end - first > self.window or (valid is not None and queries > 1):
            visible = _band(queries, end - first, self.window, device)
        if valid is not None:
            padding = self.note(write, valid)[:, None, read]
            visible = padding if visible is None else padding & visible
        return Place(write, read, visible)

    def _make_room(self, new: int) -> None:
        kept = min(self.length, self.window + self.slack)
        # Doubled until the window is full. From then on, moving it every `slack` positions costs less than reading it.
        self.room = max(kept + new, min(2 * (kept + new), self.window + 2 * self.slack))
        moved = slice(self.length - kept, self.length)
        for layer, (keys, values) in enumerate(self.buffers):
            self.buffers[layer] = self._moved(keys, moved), self._moved(values, moved)
        if self.valid is not None:
            old, self.valid = self.valid, self.valid.new_ones(len(self.valid), self.room)
            self.valid[:, :kept] = old[:, moved]
        self.length = kept

    def _moved(self, buffer: Tensor, moved: slice) -> Tensor:
        target = buffer.new_zeros(*buffer.shape[:2], self.room, buffer.shape[3])
        target[:, :, : moved.stop - moved.start] = buffer[:, :, moved]
        return target

    def newest(self, positions: int) -> slice:
        return slice(max(0, self.length - positions), self.length)

    def take_back(self, positions: int) -> None:
        """Forget the newest `positions`; raises as `check_take_back` does."""
        self.check_take_back(positions)
        self.seen -= positions
        self.length -= positions

    def check_take_back(self, positions: int) -> None:
        """Raises ValueError where older positions that would be in the window again have been let go."""
        if self.length - positions < min(self.seen - positions, self.window) or positions > self.seen:
            raise ValueError(
                f"{positions} tokens cannot be taken back: {self.length} are kept, and the window is {self.window}"
            )

    def clear(self) -> None:
        self.seen = self.length = 0
        self.valid = None


class KeyValueRing(_KeyValues):
    """Buffers of a final size, in which a new position takes the place of the oldest; counted on the device.

    A step looks the same whatever has been seen, which is what `torch.compile` and CUDA graphs need. As many positions
    can be taken back as there is `room` for besides the window.
    """

    def __init__(self, window: int, room: int) -> None:
        super().__init__(window, room)
        self.seen: Tensor | int = 0

    def place(self, new: int, queries: int, valid: Tensor | None, device: torch.device, *, together: bool) -> Place:
        """As `KeyValueWindow.place`. Raises ValueError for several positions that are not placed `together`."""
        if new > 1 and not together:
            raise ValueError(f"a static cache takes one token at a time behind the prompt, not {new}")
        if isinstance(self.seen, int):
            self.seen = torch.zeros((), dtype=torch.int64, device=device)
        positions = self.seen + torch.arange(new, device=device)
        self.seen += new
        last = positions[-1]
        held = last - (last - torch.arange(self.room, device=device)) % self.room
        visible = ((held >= 0) & (held > last - self.window) & (held <= positions[-queries:, None]))[None]
        write = positions % self.room
        if valid is not None:
            visible = visible & self.note(write, valid)[:, None]
        return Place(write, slice(None), visible)

    def append(self, layer: int, place: Place, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """As `KeyValueWindow.append`."""
        stored = super().append(layer, place, keys, values)
        if not torch.compiler.is_compiling():
            # CUDA graphs write only into tensors that are known to stay where they are.
            for buffer in self.buffers[layer]:
                torch._dynamo.mark_static_address(buffer)
        return stored

    def newest(self, positions: int) -> Tensor:
        assert isinstance(self.seen, Tensor)
        return (self.seen - 1 - torch.arange(min(positions, self.room), device=self.seen.device)) % self.room

    def take_back(self, positions: int) -> None:
        """Forget the newest `positions`."""
        self.seen -= positions

    def clear(self) -> None:
        self.seen *= 0
        self.valid = None


def _band(queries: int, keys: int, window: int, device: torch.device) -> Tensor:
    """Which of the last `window` keys up to its own each right-aligned query sees: (1, queries, keys) bool."""
    ahead = keys - queries
    return torch.ones(1, queries, keys, dtype=torch.bool, device=device).tril(ahead).triu(ahead + 1 - window)


class CacheStep(NamedTuple):
    """What a forward pass needs of the cache."""

    positions: Tensor
    """(batch or 1, new tokens): how many valid tokens of its row come before each."""
    cross: KeyValueStore
    latents: list[KeyValueStore]
    """One for each self-attention layer."""


class PerceiverARCache:
    """What decoding keeps: the context for the cross-attention, the latents for each self-attention layer.

    The first tokens given are read together, their last ones as latents. Each later token is a latent with a window of
    its own: of `max_seq_len` tokens and `max_latents` latents, up to itself. Once all `max_latents` are in use,
    decoding goes on in one of two ways. *Sliding*: just feed the next token; the oldest latent leaves the window
    (constant cost, drifts from the uncached result). *Refresh*: `restart_latents` first, then feed the restarted tokens
    again with the next one (with all latents restarted, equal to the uncached result). A model with `kv_norm` "prefix"
    keeps other keys of a latent than of a prefix token: restart all latents there, and feed some of them as prefix.

    With `static_tokens`, buffers are allocated once for so many tokens in all, and every step of one token has the same
    shapes. Such a cache takes no token back, except to restart latents.
    """

    def __init__(self, config: PerceiverARConfig, static_tokens: int | None = None) -> None:
        self.num_layers = config.num_layers
        context, latents = config.max_seq_len, config.max_latents
        self.cross: KeyValueWindow | KeyValueRing
        self.latents: KeyValueWindow | KeyValueRing
        if static_tokens is None:
            slack = max(latents, MIN_SLACK)
            self.cross = KeyValueWindow(context, slack)
            self.latents = KeyValueWindow(latents, slack)
        else:
            self.cross = KeyValueRing(context, room=min(context + latents, static_tokens))
            self.latents = KeyValueRing(latents, room=min(latents, static_tokens))
        self.decoding = False
        """Whether further tokens are latents with windows of their own."""
        self.padding: Tensor | None = None
        """(batch,): how many of the tokens seen are padding; None while there is none."""

    @property
    def tokens_seen(self) -> int:
        return int(self.cross.seen)

    @property
    def latents_seen(self) -> int:
        """Tokens that went through the stack since the first ones, or since the last restart."""
        return int(self.latents.seen)

    @property
    def is_static(self) -> bool:
        return isinstance(self.cross, KeyValueRing)

    def step(self, input_ids: Tensor, num_latents: int, key_valid: Tensor | None) -> CacheStep:
        """Count `input_ids` (batch, new) as seen, the last `num_latents` as latents.

        `key_valid` (batch, new) is False at padding.
        """
        batch, new = input_ids.shape
        device = input_ids.device
        positions = (self.cross.seen + torch.arange(new, device=device))[None]
        if self.padding is not None and key_valid is None:
            key_valid = torch.ones_like(input_ids, dtype=torch.bool)
        latent_valid = None
        if key_valid is not None:
            latent_valid = key_valid[:, -num_latents:]
            before = torch.zeros(batch, dtype=torch.int64, device=device) if self.padding is None else self.padding
            positions = positions - before[:, None] - token_positions(~key_valid)
            self.padding = before + (~key_valid).sum(1)
        together, self.decoding = not self.decoding, True
        cross = self.cross.place(new, num_latents, key_valid, device, together=together)
        latents = self.latents.place(num_latents, num_latents, latent_valid, device, together=together)
        return CacheStep(
            positions,
            partial(self.cross.append, 0, cross),
            [partial(self.latents.append, layer, latents) for layer in range(self.num_layers)],
        )

    def crop(self, tokens: int) -> None:
        """Forget the newest `tokens`, exactly: decoding goes on as if they had never been fed.

        Raises ValueError where that is no longer possible: more than `max_latents` and 64, besides those fed last.
        """
        if isinstance(self.cross, KeyValueRing) or isinstance(self.latents, KeyValueRing):
            raise ValueError("a static cache takes no tokens back")
        latents = min(tokens, self.latents_seen)
        self.cross.check_take_back(tokens)
        self.latents.check_take_back(latents)
        self._take_back(tokens)
        self.latents.take_back(latents)

    def restart_latents(self, tokens: int) -> None:
        """Drop all latents and un-see the newest `tokens` (at most `max_latents`), to be fed again as latents."""
        self._take_back(tokens)
        self.latents.clear()
        self.decoding = False

    def _take_back(self, tokens: int) -> None:
        newest = self.cross.newest(tokens)
        self.cross.take_back(tokens)
        if self.padding is not None and self.cross.valid is not None:
            self.padding = self.padding - (~self.cross.valid[:, newest]).sum(1)

    def reorder(self, rows: Tensor) -> None:
        """Replace batch row i by row ``rows[i]``. There may be more or fewer rows than before."""
        self.cross.reorder(rows)
        self.latents.reorder(rows)
        if self.padding is not None:
            self.padding = self.padding.index_select(0, rows.to(self.padding.device))

    def reorder_newest(self, rows: Tensor, tokens: int) -> None:
        """Replace the newest `tokens` of batch row i by those of row ``rows[i]``; all before them must be the same."""
        self.cross.reorder_newest(rows, tokens)
        self.latents.reorder_newest(rows, tokens)
