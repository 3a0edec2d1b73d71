"""A corpus as the trainer reads it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from pretrain.corpus.manifest import FileEntry, Manifest, ShardEntry, SplitEntry, read_manifest
from pretrain.corpus.tokenizers import Tokenizer, load_saved_tokenizer
from pretrain.errors import InputError
from pretrain.files import hash_file


class TokenStream:
    """The tokens of one split, end to end: memory-mapped shards, each one's hash checked when it is first touched."""

    def __init__(self, folder: Path, split: SplitEntry, dtype: str, shard_tokens: int):
        self._folder = folder
        self._split = split
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._shard_tokens = shard_tokens
        self._shards: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self._split.tokens

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop` - 1, int64.

        Raises:
            InputError: a shard is missing or damaged.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start} to {stop} of a stream of {len(self)}")
        result = np.empty(stop - start, dtype=np.int64)
        position = start
        while position < stop:
            number, offset = divmod(position, self._shard_tokens)
            part = self._shard(number)[offset : offset + stop - position]
            result[position - start : position - start + len(part)] = part
            position += len(part)
        return result

    def document_ends(self) -> np.ndarray:
        """Places behind the end token of each document, ascending; int64."""
        ends = []
        for number, shard in enumerate(self._split.shards):
            place = np.frombuffer(self._checked(shard, ".ends").read_bytes(), dtype="<u8")
            ends.append(place.astype(np.int64) + number * self._shard_tokens)
        return np.concatenate(ends)

    def document_ids(self) -> list[str]:
        """Where each document came from, in the order of `document_ends`."""
        files = [self._checked(shard, ".ids") for shard in self._split.shards]
        return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]

    def _shard(self, number: int) -> np.ndarray:
        if number not in self._shards:
            path = self._checked(self._split.shards[number], ".bin")
            # A plain view: slices of the memmap class cost several times as much.
            self._shards[number] = np.memmap(path, dtype=self._dtype, mode="r").view(np.ndarray)
        return self._shards[number]

    def _checked(self, shard: ShardEntry, ending: str) -> Path:
        [(name, entry)] = [(name, entry) for name, entry in shard.files.items() if name.endswith(ending)]
        check_file(self._folder / name, entry)
        return self._folder / name


class Corpus:
    """A folder written by `pretrain/prepare.py`."""

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder = folder
        self.manifest = manifest

    def split(self, name: str) -> TokenStream:
        """`train` or `validation`."""
        return TokenStream(self.folder, self.manifest.splits[name], self.manifest.dtype, self.manifest.shard_tokens)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer the corpus was prepared with.

        Raises:
            InputError: its file is damaged.
        """
        for name, entry in self.manifest.tokenizer_files.items():
            check_file(self.folder / name, entry)
        return load_saved_tokenizer(self.folder, self.manifest.tokenizer, self.manifest.end_id)


def open_corpus(folder: Path) -> Corpus:
    """Open a corpus; the sizes of all its files are checked now, their hashes when they are first read.

    Raises:
        InputError: the folder is missing, half-written, damaged or of another format; the message names the file.
    """
    manifest = read_manifest(folder)
    for name, entry in manifest.files().items():
        _check_size(folder / name, entry)
    return Corpus(folder, manifest)


def check_file(path: Path, entry: FileEntry) -> None:
    """Compare a file with its entry in the manifest.

    Raises:
        InputError: it is missing, cut or changed.
    """
    _check_size(path, entry)
    if hash_file(path) != entry.xxh64:
        raise InputError(f"{path}: damaged, its hash is not the manifest's; prepare the corpus again")


def _check_size(path: Path, entry: FileEntry) -> None:
    if not path.is_file():
        raise InputError(f"{path}: missing from the corpus; prepare it again")
    if (size := path.stat().st_size) != entry.bytes:
        raise InputError(f"{path}: has {size} bytes, the manifest says {entry.bytes}; prepare the corpus again")
