"""Writing the token shards of one split."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import xxhash

from pretrain.corpus.manifest import FileEntry, ShardEntry

SHARD_FILES = (".bin", ".ends", ".ids")


class HashedFile:
    """A new file, hashed as it is written."""

    def __init__(self, path: Path):
        self._file = path.open("xb")
        self._hash = xxhash.xxh64()
        self._bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._bytes += len(data)

    def close(self) -> FileEntry:
        self._file.close()
        return FileEntry(bytes=self._bytes, xxh64=self._hash.hexdigest())


class ShardWriter:
    """Cuts a split's stream of tokens into shards of `shard_tokens`; documents run on from one shard into the next.

    `train-00000.bin` holds tokens, `train-00000.ends` the places behind the last token of each document that ends in
    the shard (uint64, from the shard's start), `train-00000.ids` the ids of these documents as JSON, one a line.
    """

    def __init__(self, folder: Path, split: str, dtype: str, shard_tokens: int):
        self.shards: list[ShardEntry] = []
        self._folder = folder
        self._split = split
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._shard_tokens = shard_tokens
        self._open()

    def add(self, id: str, tokens: np.ndarray, text_bytes: int) -> None:
        """Append one document, its end token included."""
        data = np.ascontiguousarray(tokens, dtype=self._dtype)
        while len(data):
            if self._tokens == self._shard_tokens:
                self._close()
                self._open()
            part, data = np.split(data, [self._shard_tokens - self._tokens])
            self._files[".bin"].write(part.tobytes())
            self._tokens += len(part)
        self._files[".ends"].write(np.uint64(self._tokens).astype("<u8").tobytes())
        self._files[".ids"].write(json.dumps(id).encode() + b"\n")
        self._documents += 1
        self._bytes += text_bytes

    def close(self) -> list[ShardEntry]:
        self._close()
        return self.shards

    def _open(self) -> None:
        self._name = f"{self._split}-{len(self.shards):05d}"
        self._files = {end: HashedFile(self._folder / (self._name + end)) for end in SHARD_FILES}
        self._tokens = self._bytes = self._documents = 0

    def _close(self) -> None:
        files = {self._name + end: file.close() for end, file in self._files.items()}
        entry = ShardEntry(tokens=self._tokens, bytes=self._bytes, documents=self._documents, files=files)
        self.shards.append(entry)
