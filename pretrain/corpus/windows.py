"""Cutting a token stream into training windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import xxhash

from pretrain.errors import InputError

if TYPE_CHECKING:  # a corpus makes windows of its streams
    from pretrain.corpus.stream import TokenStream

IGNORED = -100
PADDING = 0
BLOCK_SHARDS = 4
"""Windows of so many shards are kept together by the shuffle, so that it works through few shards at a time."""


@dataclass(frozen=True)
class Window:
    input_ids: np.ndarray
    """(context,) int64."""
    targets: np.ndarray
    """(latents,) int64, the tokens behind the last `latents` inputs; -100 where there is nothing to train."""
    valid: np.ndarray | None
    """(context,) bool, False on padding, which is on the left; None if there is none."""
    segments: np.ndarray | None = None
    """(context,) int32: to which of the window's documents a token belongs, counted from 0; padding belongs to the
    first. None where documents are not told apart."""


class Windows(Protocol):
    """Numbered windows of tokens, as many in every epoch, all of `context` inputs and `latents` targets."""

    context: int
    latents: int

    @property
    def block_windows(self) -> int:
        """Neighbouring windows that the shuffle keeps together: those of about four shards, at least 1."""

    def __len__(self) -> int:
        """Windows of an epoch."""

    def window(self, number: int, epoch: int = 0) -> Window:
        """Window `number`, 0 <= number < len(self), of an epoch.

        Raises:
            InputError: a shard is missing or damaged, or cannot be downloaded.
        """

    def will_read(self, numbers: np.ndarray, epochs: np.ndarray) -> None:
        """Announce `window` calls with these numbers and epochs, in this order; int64 of one shape."""


WindowKind = Literal["strided", "packed", "crop"]


def make_windows(
    kind: WindowKind, stream: TokenStream, *, context: int, latents: int, key: int, segments: bool
) -> Windows:
    """Windows to train on; `strided` ones are `latents` apart. `key` decides the crops of `crop` and nothing else.

    Raises:
        InputError: the stream has nothing to predict.
    """
    if kind == "strided":
        return StridedWindows(stream, context=context, latents=latents, stride=latents, segments=segments)
    if kind == "packed":
        return PackedWindows(stream, context=context, latents=latents, segments=segments)
    return CropWindows(stream, context=context, latents=latents, key=key, segments=segments)


def cut_window(tokens: np.ndarray, starts: np.ndarray | None, trained: int, *, context: int, latents: int) -> Window:
    """The window of a run of tokens, the last of which is its last target, with the last `trained` of them as targets.

    Args:
        tokens: (1 + inputs,) int64, inputs <= context.
        starts: where in the inputs a document begins, but for the one at their start; None counts no documents.
    """
    padding = context + 1 - len(tokens)
    valid = None
    if padding:
        tokens = np.concatenate([np.full(padding, PADDING), tokens])
        valid = np.arange(context) >= padding
    targets = tokens[-latents:].copy()
    targets[: max(0, latents - trained)] = IGNORED
    segments = None
    if starts is not None:
        bounds = np.empty(len(starts) + 2, dtype=np.int64)
        bounds[0], bounds[1:-1], bounds[-1] = 0, starts + padding, context
        segments = np.arange(len(starts) + 1, dtype=np.int32).repeat(np.diff(bounds))
    return Window(tokens[:-1], targets, valid, segments)


class _StreamWindows:
    """What the kinds of windows share: each is found by its last target, and cut from the stream there."""

    def __init__(self, stream: TokenStream, *, context: int, latents: int, segments: bool = False):
        if not 1 <= latents <= context:
            raise ValueError(f"1 <= latents {latents} <= context {context} does not hold")
        if len(stream) < 2:
            raise InputError(f"corpus: a split of {len(stream)} token has nothing to predict; add text to its sources")
        self.stream = stream
        self.context = context
        self.latents = latents
        self.segments = segments

    def _cut(self, last_target: int, first_target: int = 1, begin: int = 0) -> Window:
        """The inputs end just before token `last_target`; none lies before token `begin`. Targets before token
        `first_target` are ignored."""
        start = max(begin, last_target - self.context)
        tokens = self.stream.read(start, last_target + 1)
        starts = self.stream.document_starts(start, last_target) - start if self.segments else None
        trained = last_target + 1 - max(first_target, start + 1)
        return cut_window(tokens, starts, trained, context=self.context, latents=self.latents)

    def _check(self, number: int, windows: int) -> None:
        if not 0 <= number < windows:
            raise IndexError(f"window {number} of {windows}")


class StridedWindows(_StreamWindows):
    """Windows `stride` tokens apart, each with up to `context` tokens before its targets, the same in every epoch.

    Window w trains tokens w*stride + 1 to (w+1)*stride of the stream, so every token but the very first is a target
    exactly once. Its inputs are the `context` tokens that end just before its last target. The last window is moved
    left to end with the stream.
    """

    def __init__(self, stream: TokenStream, *, context: int, latents: int, stride: int, segments: bool = False):
        super().__init__(stream, context=context, latents=latents, segments=segments)
        if not 1 <= stride <= latents:
            raise ValueError(f"1 <= stride {stride} <= latents {latents} does not hold")
        self.stride = stride

    @property
    def block_windows(self) -> int:
        return max(1, BLOCK_SHARDS * self.stream.shard_tokens // self.stride)

    def __len__(self) -> int:
        return -(-(len(self.stream) - 1) // self.stride)

    def window(self, number: int, epoch: int = 0) -> Window:
        self._check(number, len(self))
        last_target = min((number + 1) * self.stride, len(self.stream) - 1)
        return self._cut(last_target, first_target=number * self.stride + 1)

    def will_read(self, numbers: np.ndarray, epochs: np.ndarray) -> None:
        last_target = np.minimum((numbers + 1) * self.stride, len(self.stream) - 1)
        self.stream.will_read(np.maximum(last_target - self.context, 0), last_target + 1)


class PackedWindows(_StreamWindows):
    """Documents end to end, cut every `context` tokens; the last `latents` tokens before each cut are trained.

    In epoch e all cuts lie (e * latents) % context tokens further left: the first window then begins with padding, and
    the last tokens, fewer than `context`, are left out. A last cut behind the stream's end is moved to it. Apart from
    what a moved cut reads twice (fewer than `context` tokens), an epoch reads no token twice.

    Over any ceil(context / latents) epochs in a row every token but the first is trained: once where `latents` divides
    `context`; otherwise ceil(context / latents) * latents - context of every `context` tokens are trained twice. The
    stream's last `latents` tokens are the exception: a moved cut trains them again, and where `latents` does not divide
    `context`, those behind the last cut of all these epochs are not trained.
    """

    @property
    def block_windows(self) -> int:
        return max(1, BLOCK_SHARDS * self.stream.shard_tokens // self.context)

    def __len__(self) -> int:
        return -(-(len(self.stream) - 1) // self.context)

    def window(self, number: int, epoch: int = 0) -> Window:
        self._check(number, len(self))
        shift = epoch * self.latents % self.context
        return self._cut(min((number + 1) * self.context - shift, len(self.stream) - 1))

    def will_read(self, numbers: np.ndarray, epochs: np.ndarray) -> None:
        shift = epochs * self.latents % self.context
        last_target = np.minimum((numbers + 1) * self.context - shift, len(self.stream) - 1)
        self.stream.will_read(np.maximum(last_target - self.context, 0), last_target + 1)


class CropWindows(_StreamWindows):
    """One window of each document with at least two tokens, ending anywhere in it, elsewhere in every epoch.

    The last target is uniform over the document's tokens number min(latents, length - 1) to length - 1, from `key`,
    number and epoch alone; up to `latents` tokens that end there are trained. No token of another document is seen: a
    crop shorter than `context` begins with padding. This is the scheme of the Perceiver AR paper (Hawthorne et al.
    2022). All document ends are held in memory: 8 bytes for each document, and 8 more for each that is too short.
    """

    def __init__(self, stream: TokenStream, *, context: int, latents: int, key: int, segments: bool = False):
        super().__init__(stream, context=context, latents=latents, segments=segments)
        self._bounds = np.concatenate([np.zeros(1, dtype=np.int64), stream.document_ends()])
        short = np.flatnonzero(np.diff(self._bounds) < 2)
        # How many windows come before each document that is too short: what turns their numbers into documents'.
        self._windows_before_short = short - np.arange(len(short))
        if not len(self):
            raise InputError("corpus: no document of a split has two tokens, so there is nothing to predict")
        self._key = key

    @property
    def block_windows(self) -> int:
        return max(1, BLOCK_SHARDS * self.stream.shard_tokens * len(self) // len(self.stream))

    def __len__(self) -> int:
        return len(self._bounds) - 1 - len(self._windows_before_short)

    def window(self, number: int, epoch: int = 0) -> Window:
        self._check(number, len(self))
        return self._cut(self._last_target(number, epoch), begin=int(self._bounds[self._document(number)]))

    def will_read(self, numbers: np.ndarray, epochs: np.ndarray) -> None:
        if not self.stream.is_remote:
            return
        drawn = zip(numbers.ravel().tolist(), epochs.ravel().tolist(), strict=True)
        last_target = np.array([self._last_target(*place) for place in drawn], dtype=np.int64)
        starts = self._bounds[self._document(numbers.ravel())]
        self.stream.will_read(np.maximum(last_target - self.context, starts), last_target + 1)

    def _document(self, number: Any) -> Any:
        """Number of a window's document; int or array of int64."""
        return number + self._windows_before_short.searchsorted(number, side="right")

    def _last_target(self, number: int, epoch: int) -> int:
        document = self._document(number)
        start, end = self._bounds[document : document + 2].tolist()
        first = min(self.latents, end - start - 1)
        draw = xxhash.xxh64_intdigest(f"crop of {number} in epoch {epoch}, key {self._key}".encode())
        return int(start + first + draw % (end - start - first))
