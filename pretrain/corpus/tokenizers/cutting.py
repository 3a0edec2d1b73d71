"""Long documents are encoded in pieces: a tokenizer's memory, and often its time, grows with the text it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

PIECE_BYTES = 1 << 20
PROBES = (
    ("The first line.\n", "The second line.\n"),
    ("def f():\n", "    return 1\n"),
    ("one\n\n", "\n two"),
    ("1\n", "2"),
    ("é\n", "\té"),
)
"""Texts on the two sides of a cut."""


def encode_in_pieces(
    texts: Sequence[bytes], encode: Callable[[list[str]], Sequence[np.ndarray]], may_cut: Callable[[], bool]
) -> list[np.ndarray]:
    """Ids of each text: of its pieces, one behind the other, where it is over `PIECE_BYTES` long and may be cut."""
    cuts = [
        list(cut_at_newlines(text, PIECE_BYTES)) if len(text) > PIECE_BYTES and may_cut() else [text] for text in texts
    ]
    ids = iter(encode([piece.decode() for cut in cuts for piece in cut]))
    return [next(ids) if len(cut) == 1 else np.concatenate([next(ids) for _ in cut]) for cut in cuts]


def cut_at_newlines(text: bytes, size: int) -> Iterator[bytes]:
    """Pieces that end with a newline, each as long as fits `size` bytes; a longer line is a piece of its own."""
    start = 0
    while len(text) - start > size:
        end = text.rfind(b"\n", start, start + size) + 1 or text.find(b"\n", start + size) + 1 or len(text)
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def cuts_leave_no_trace(encode: Callable[[str], list[int]], decode: Callable[[list[int]], str]) -> bool:
    """Whether a text encoded in two pieces decodes to what it does encoded whole.

    A tokenizer that puts a space before every text it is given would leave one at every cut.
    """
    return all(decode(encode(first) + encode(second)) == decode(encode(first + second)) for first, second in PROBES)
