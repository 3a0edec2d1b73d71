"""UTF-8 bytes as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import xxhash

BYTES = "bytes"


class ByteTokenizer:
    """UTF-8 bytes; id = byte + 6 behind pad 0, bos 1, eos 2, mask 3, cls 4 and sep 5, as in Perceiver IO."""

    specials = 6
    name = BYTES
    engine = "numpy"
    vocab_size = 256 + specials
    end_id = 2
    files: ClassVar[dict[str, bytes]] = {}
    hash = xxhash.xxh64_hexdigest(f"{BYTES}: id = byte + {specials}, end {end_id}".encode())

    def encode(self, text: str | bytes) -> np.ndarray:
        raw = text.encode() if isinstance(text, str) else text
        return np.frombuffer(raw, dtype=np.uint8).astype(np.int64) + self.specials

    def encode_batch(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        ids = np.asarray(ids, dtype=np.int64)
        return (ids[ids >= self.specials] - self.specials).astype(np.uint8).tobytes().decode(errors="replace")
