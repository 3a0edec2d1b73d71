"""A virtual stream: its share of a data set's documents, end to end and epoch after epoch, cut into windows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pretrain.corpus.sources.streamed_text import StreamedText
from pretrain.corpus.splits import content_hash, is_validation
from pretrain.corpus.tokenizers import Tokenizer
from pretrain.corpus.windows import Window, cut_window
from pretrain.errors import InputError

ENCODED_BYTES = 256 << 10
"""Text handed to the tokenizer at once; a longer document goes alone."""


class Place(NamedTuple):
    """Where a document lies in a data set that is gone through again and again."""

    epoch: int
    file: int
    group: int
    row: int


@dataclass(frozen=True)
class Share:
    """One stream's part of a data set: these files one after the other, and of each the rows dealt to it."""

    files: range
    part: int
    parts: int
    """Streams that share these files; row r of group g belongs to part (g + r) % parts."""

    def __str__(self) -> str:
        rows = "" if self.parts == 1 else f", one row in {self.parts}"
        return f"{len(self.files)} file{'s' if len(self.files) > 1 else ''}{rows}"


def deal(files: int, streams: int, stream: int) -> Share:
    """Stream v of V reads the files v, v + V, ...; where files are fewer than streams, several share one by rows."""
    file = stream % files
    return Share(range(file, files, streams), stream // files, len(range(file, streams, files)))


class Documents:
    """The documents of a share that are trained on, as tokens with the end token behind each."""

    def __init__(self, text: StreamedText, share: Share, tokenizer: Tokenizer, validation_fraction: float):
        self._text = text
        self._share = share
        self._tokenizer = tokenizer
        self._validation_fraction = validation_fraction

    def read(self, place: Place) -> Iterator[tuple[list[Place], list[np.ndarray]]]:
        """Batches of documents from a place on, without end: places and (tokens,) int64 of each.

        Raises:
            InputError: a file cannot be read, or the whole share holds no document to train on.
        """
        while True:
            found = False
            for places, texts in self._texts(place):
                yield places, [np.append(ids, self._tokenizer.end_id) for ids in self._tokenizer.encode_batch(texts)]
                found = True
            if not found and place == self.first(place.epoch):
                raise InputError(
                    f"data.stream: a virtual stream's share of the data set ({self._share}) holds no text to train on; "
                    "lower data.stream.streams or take a larger data set"
                )
            place = self.first(place.epoch + 1)

    def first(self, epoch: int) -> Place:
        return Place(epoch, self._share.files[0], 0, 0)

    def _texts(self, place: Place) -> Iterator[tuple[list[Place], list[bytes]]]:
        """What is left of an epoch from a place on, in batches of up to about `ENCODED_BYTES`."""
        files = self._share.files
        for file in files[files.index(place.file) :]:
            group, row = (place.group, place.row) if file == place.file else (0, 0)
            for rows in self._text.rows(file, group, row):
                places: list[Place] = []
                texts: list[bytes] = []
                size = 0
                for number, text in enumerate(rows.texts, start=rows.first):
                    if self._is_trained(rows.group + number, text):
                        places.append(Place(place.epoch, file, rows.group, number))
                        texts.append(text)
                        size += len(text)
                    if size >= ENCODED_BYTES:
                        yield places, texts
                        places, texts, size = [], [], 0
                if places:
                    yield places, texts

    def _is_trained(self, number: int, text: bytes) -> bool:
        own = number % self._share.parts == self._share.part
        return own and bool(text) and not is_validation(content_hash(text), self._validation_fraction)


class VirtualStream:
    """Windows `latents` tokens apart over endless documents, each with up to `context` tokens before its targets.

    They are the windows of `StridedWindows` over the same tokens. Of what has been read, only the tokens of the next
    context and what was tokenized ahead are kept.

    Args:
        state: what `state` was when the stream was left; None begins at the beginning.
    """

    def __init__(
        self, documents: Documents, *, context: int, latents: int, segments: bool, state: dict[str, Any] | None = None
    ):
        self._context = context
        self._latents = latents
        self._segments = segments
        self._windows = 0 if state is None else state["windows"]
        place = documents.first(0) if state is None else Place(*state["place"])
        self._batches = documents.read(place)
        self._tokens = np.empty(0, dtype=np.int64)
        # Of the documents that `_tokens` touches: where they lie, and the position of their first token in the stream.
        self._places: list[Place] = []
        self._starts = np.empty(0, dtype=np.int64)
        self._end = 0 if state is None else self._next_first() - state["token"]

    def next_window(self) -> Window:
        """Raises `InputError` as `Documents.read` does."""
        self.read_next()
        first, last = self._next_first(), (self._windows + 1) * self._latents
        begin = self._end - len(self._tokens)
        tokens = self._tokens[first - begin : last + 1 - begin]
        starts = self._starts[slice(*np.searchsorted(self._starts, [first + 1, last]))] - first
        self._windows += 1
        return cut_window(
            tokens,
            starts if self._segments else None,
            trained=self._latents,
            context=self._context,
            latents=self._latents,
        )

    def read_next(self) -> None:
        """Read what `next_window` needs, which calls it itself: for those who want to wait for many streams at once.

        Raises `InputError` as `Documents.read` does.
        """
        while self._end <= (self._windows + 1) * self._latents:
            self._extend(self._next_first())

    def state(self) -> dict[str, Any]:
        """Where the stream stands behind the last window: JSON-able, of the same size however far that is.

        `windows`: served so far. `place` (epoch, file, row group, row) and `token`: where the next window's context
        begins. `epochs`: how often the last target's document had been reached before.
        """
        first = self._next_first()
        number = self._document(first)
        return {
            "windows": self._windows,
            "epochs": self._places[self._document(self._windows * self._latents)].epoch,
            "place": list(self._places[number]),
            "token": first - int(self._starts[number]),
        }

    def _next_first(self) -> int:
        """Position of the next window's first token."""
        return max(0, (self._windows + 1) * self._latents - self._context)

    def _document(self, position: int) -> int:
        """Number, among the documents at hand, of the one a token belongs to."""
        return int(np.searchsorted(self._starts, position, side="right")) - 1

    def _extend(self, first: int) -> None:
        """Append a batch of documents and drop what lies before position `first`."""
        places, tokens = next(self._batches)
        starts = self._end + np.cumsum([0, *map(len, tokens)])
        dropped = max(0, first - (self._end - len(self._tokens)))
        self._tokens = np.concatenate([self._tokens[dropped:], *tokens])
        self._end = int(starts[-1])
        self._places += places
        self._starts = np.concatenate([self._starts, starts[:-1]])
        done = max(0, self._document(first))
        self._places, self._starts = self._places[done:], self._starts[done:]
