"""Which documents are held out, and the order of all of them: both follow from the hash of a document's text alone.

So equal texts are never on both sides, a corpus that grows keeps its sides, and nobody has to see all documents to
place one. The hash has two independent halves: the first decides the side, the second the order.
"""

from __future__ import annotations

import numpy as np
import xxhash


def content_hash(text: bytes) -> bytes:
    """xxh3_128 of a document's text, 16 bytes."""
    return xxhash.xxh3_128_digest(text)


def is_validation(digest: bytes, fraction: float) -> bool:
    """Whether the text with this `content_hash` is held out, when a `fraction` of all texts is."""
    return int.from_bytes(digest[:8], "big") < validation_threshold(fraction)


def validation_threshold(fraction: float) -> int:
    """Texts whose hash has a first half below this are held out."""
    return int(fraction * 2**64)


def threshold_for_both(fraction: float, smallest: int, largest: int) -> int:
    """`validation_threshold`, moved just far enough that both sides get a text.

    Args:
        smallest, largest: of the first halves of all hashes; they differ.
    """
    return min(max(validation_threshold(fraction), smallest + 1), largest)


def hash_halves(digests: bytes) -> tuple[np.ndarray, np.ndarray]:
    """(side, place) of the concatenated digests, (documents,) uint64 each.

    Documents of a split stand in ascending order of place, then side.
    """
    halves = np.frombuffer(digests, dtype=">u8").reshape(-1, 2).astype(np.uint64)
    return halves[:, 0], halves[:, 1]
