"""Files of a checkpoint: hashed while they are written, on the disk when they are done."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
import xxhash
from torch import Tensor

from pretrain.checkpoint.layout import Piece

BLOCK = 1 << 22
"""Elements (16 MiB) that are brought to the host, hashed and written at a time."""


class FileEntry(TypedDict):
    """A file in the manifest."""

    size: int
    xxh64: str


def write_pieces(path: Path, pieces: Sequence[Piece]) -> FileEntry:
    """Write a safetensors file; at no time more than a block of it is copied. Raises OSError."""
    header: dict[str, Any] = {}
    offset = 0
    for piece in pieces:
        end = offset + 4 * piece.tensor.numel()
        header[piece.key] = {"dtype": "F32", "shape": [piece.tensor.numel()], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    blocks = (_bytes(block) for piece in pieces for block in piece.tensor.split(BLOCK))
    return _write(path, [len(text).to_bytes(8, "little") + text], blocks)


def write_text(path: Path, text: str) -> FileEntry:
    """Raises OSError."""
    return _write(path, [text.encode()])


def _bytes(block: Tensor) -> memoryview:
    return block.to("cpu").view(torch.uint8).numpy().data


def _write(path: Path, *parts: Iterable[bytes | memoryview]) -> FileEntry:
    digest, size = xxhash.xxh64(), 0
    with path.open("wb", buffering=0) as file:
        for part in parts:
            for block in part:
                _write_all(file.fileno(), block)
                digest.update(block)
                size += len(block)
        os.fsync(file.fileno())
    return {"size": size, "xxh64": digest.hexdigest()}


def _write_all(handle: int, block: bytes | memoryview) -> None:
    # A disk that fills up takes the first part of a block and refuses the rest.
    rest = memoryview(block)
    while rest:
        rest = rest[os.write(handle, rest) :]
