"""The files of a token shard, and writing a split's documents into shards one after the other."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np

from pretrain.corpus.manifest import ShardEntry
from pretrain.corpus.writing.files import HashedFile

SHARD_FILES = (".bin", ".ends", ".ids")


class Shard:
    """One shard in the making.

    `train-00000.bin` holds tokens, `train-00000.ends` the places behind the last token of each document that ends in
    the shard (uint64, from the shard's start), `train-00000.ids` the ids of these documents as JSON, one a line.
    """

    def __init__(self, folder: Path, split: str, number: int):
        self.tokens = self.documents = self.text_bytes = 0
        self._name = f"{split}-{number:05d}"
        self._files = {suffix: HashedFile(folder / (self._name + suffix)) for suffix in SHARD_FILES}

    def write_tokens(self, tokens: np.ndarray) -> None:
        """Append tokens, which are of the corpus's dtype."""
        self._files[".bin"].write(tokens.view(np.uint8).data)
        self.tokens += len(tokens)

    def write_documents(self, ends: np.ndarray, ids: Iterable[bytes], text_bytes: int) -> None:
        """Append documents: the places behind them in this shard, their `id_line`s, the size of their text in all."""
        self._files[".ends"].write(ends.astype("<u8").tobytes())
        self._files[".ids"].write(b"".join(ids))
        self.documents += len(ends)
        self.text_bytes += text_bytes

    def close(self) -> ShardEntry:
        files = {self._name + suffix: file.close() for suffix, file in self._files.items()}
        return ShardEntry(tokens=self.tokens, bytes=self.text_bytes, documents=self.documents, files=files)


def token_dtype(vocab_size: int) -> Literal["uint16", "uint32"]:
    """The smaller of the types that hold every token."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def id_line(id: str) -> bytes:
    """A document's id as it stands in a `.ids` file."""
    return json.dumps(id).encode() + b"\n"


class ShardWriter:
    """Cuts a split's stream of tokens into shards of `shard_tokens`; documents run on from one shard into the next."""

    def __init__(self, folder: Path, split: str, dtype: str, shard_tokens: int):
        self.shards: list[ShardEntry] = []
        self._folder = folder
        self._split = split
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._shard_tokens = shard_tokens
        self._shard = Shard(folder, split, 0)

    def add(self, id: str, tokens: np.ndarray, text_bytes: int) -> None:
        """Append one document, its end token included."""
        data = np.ascontiguousarray(tokens, dtype=self._dtype)
        while len(data):
            if self._shard.tokens == self._shard_tokens:
                self.shards.append(self._shard.close())
                self._shard = Shard(self._folder, self._split, len(self.shards))
            part, data = np.split(data, [self._shard_tokens - self._shard.tokens])
            self._shard.write_tokens(part)
        self._shard.write_documents(np.array([self._shard.tokens]), [id_line(id)], text_bytes)

    def close(self) -> list[ShardEntry]:
        self.shards.append(self._shard.close())
        return self.shards
