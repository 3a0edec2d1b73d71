"""What the writers of files share: replacing whole, reaching the disk, hashing."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import xxhash


def replace_text(path: Path, text: str) -> None:
    """Write a file so that readers see the old text or the new; an OSError leaves the old one, and nothing else."""
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):  # a file system that has become read-only refuses this too
            temporary.unlink()
        raise


def sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def hash_file(path: Path) -> str:
    """xxh64 of a file's bytes, in hexadecimal."""
    digest = xxhash.xxh64()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()
