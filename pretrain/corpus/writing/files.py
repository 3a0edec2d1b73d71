"""New files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

import xxhash

from pretrain.corpus.manifest import FileEntry
from pretrain.corpus.tokenizers import Tokenizer


def new_file(path: Path) -> IO[bytes]:
    """Open a file for writing; one that a killed process left, and may be writing to in its last moment, goes first."""
    path.unlink(missing_ok=True)
    return path.open("xb")


class HashedFile:
    """A new file, hashed as it is written and on the disk when it is closed."""

    def __init__(self, path: Path):
        self._file = new_file(path)
        self._hash = xxhash.xxh64()
        self._bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._bytes += len(data)

    def close(self) -> FileEntry:
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
        return FileEntry(bytes=self._bytes, xxh64=self._hash.hexdigest())


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> dict[str, FileEntry]:
    """Write the tokenizer's files, from which `load_saved_tokenizer` has it back."""
    entries = {}
    for name, content in tokenizer.files.items():
        file = HashedFile(folder / name)
        file.write(content)
        entries[name] = file.close()
    return entries
