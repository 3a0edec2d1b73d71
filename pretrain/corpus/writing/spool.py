"""Documents of all sources, collected in one file so that they can be read again in the order of their hashes."""

from __future__ import annotations

from array import array
from pathlib import Path

import numpy as np
import xxhash

from pretrain.corpus.sources.unit import Document
from pretrain.errors import InputError


class DocumentSpool:
    """Append-only store of documents on disk, read back by number.

    Some 50 bytes a document stay in memory, whatever the length of its text.
    """

    def __init__(self, path: Path, deduplicate: bool):
        self._file = path.open("w+b")
        self._deduplicate = deduplicate
        self._seen: set[bytes] = set()
        self._hashes = bytearray()
        self._ends = array("Q", [0])
        self._id_lengths = array("Q")

    def __len__(self) -> int:
        return len(self._id_lengths)

    def add(self, document: Document) -> bool:
        """Keep a document; False if it is left out because its text is here already."""
        digest = xxhash.xxh3_128_digest(document.text)
        if self._deduplicate:
            if digest in self._seen:
                return False
            self._seen.add(digest)
        id = document.id.encode()
        self._file.write(id)
        self._file.write(document.text)
        self._hashes += digest
        self._id_lengths.append(len(id))
        self._ends.append(self._ends[-1] + len(id) + len(document.text))
        return True

    def read(self, number: int) -> Document:
        start, end, id_length = self._ends[number], self._ends[number + 1], self._id_lengths[number]
        self._file.seek(start)
        data = self._file.read(end - start)
        return Document(data[:id_length].decode(), data[id_length:])

    def text_bytes(self, numbers: np.ndarray) -> int:
        """UTF-8 bytes of the text of the given documents."""
        lengths = np.diff(np.asarray(self._ends, dtype=np.uint64)) - np.asarray(self._id_lengths, dtype=np.uint64)
        return int(lengths[numbers].sum())

    def hashes(self) -> np.ndarray:
        """(documents, 2) uint64: two independent halves of the hash of each text."""
        return np.frombuffer(self._hashes, dtype=">u8").reshape(-1, 2).astype(np.uint64)

    def close(self) -> None:
        self._file.close()


def split_documents(hashes: np.ndarray, validation_fraction: float) -> dict[str, np.ndarray]:
    """Document numbers of each split, in shuffled order.

    Membership and order are functions of the hash of the text: equal texts never straddle, and a corpus that grows
    keeps the sides. Where so few documents leave a side empty, the nearest text is moved to it.

    Args:
        hashes: (documents, 2) uint64, from `DocumentSpool.hashes`.

    Raises:
        InputError: there are no two different texts.
    """
    side, place = hashes[:, 0], hashes[:, 1]
    if len(np.unique(hashes, axis=0)) < 2:
        raise InputError(
            f"sources: {len(hashes)} documents with text, all of them equal; "
            "train and validation need at least one each: cut the text into more documents"
        )
    threshold = np.uint64(int(validation_fraction * 2**64))
    distinct = np.unique(side)
    threshold = np.clip(threshold, distinct[0] + np.uint64(1), distinct[-1])
    validation = side < threshold
    order = np.lexsort((side, place))
    return {"train": order[~validation[order]], "validation": order[validation[order]]}
