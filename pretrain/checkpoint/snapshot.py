"""A copy of a rank's state that training cannot change while it is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from pretrain.checkpoint.layout import Piece


class HostBuffer:
    """Host memory for the pieces of one rank, allocated at the first copy and used again by the next."""

    def __init__(self) -> None:
        self._memory: torch.Tensor | None = None

    def copy(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The same pieces in this memory. They hold until the next call, which must have pieces of the same sizes."""
        sizes = [piece.tensor.numel() for piece in pieces]
        if self._memory is None:
            # Not pinned: PyTorch would round it up to a power of two, which may take twice the memory.
            self._memory = torch.empty(sum(sizes), dtype=torch.float32)
        copies = []
        for piece, memory in zip(pieces, self._memory.split(sizes), strict=True):
            memory.copy_(piece.tensor)
            copies.append(dataclasses.replace(piece, tensor=memory))
        return copies
