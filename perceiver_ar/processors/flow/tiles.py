"""Frames of any size as tiles of the one size that a model was trained on, and flows of tiles as flow of the frame."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiling:
    """Where the tiles of a frame lie: in rows and columns that overlap, the last ones flush with its end.

    A side shorter than the tile's has one tile, which reaches beyond the frame at the bottom or at the right.
    """

    frame_shape: tuple[int, int]
    """Height and width of frames, in pixels."""
    tile_shape: tuple[int, int]
    """Height and width of tiles."""

    def __post_init__(self) -> None:
        if min(self.frame_shape) < 1:
            raise ValueError(f"frame_shape: must be at least (1, 1), not {self.frame_shape}")

    @property
    def min_overlap(self) -> int:
        """How many pixels neighbours have in common, at least: 20, as published, less for small tiles."""
        return min(20, min(self.tile_shape) // 4)

    @cached_property
    def origins(self) -> list[tuple[int, int]]:
        """Top and left of each tile, row by row."""
        tops, lefts = (
            _origins(*sides, self.min_overlap) for sides in zip(self._padded_shape, self.tile_shape, strict=True)
        )
        return [(top, left) for top in tops for left in lefts]

    def cut(self, frames: Tensor) -> list[Tensor]:
        """Frames (..., H, W, C) -> their tiles (..., h, w, C); what lies beyond a frame repeats its last row or column.

        Raises:
            ValueError: the frames have another size.
        """
        if frames.shape[-3:-1] != self.frame_shape:
            (height, width), (expected_height, expected_width) = frames.shape[-3:-1], self.frame_shape
            raise ValueError(f"frames: must be {expected_width}x{expected_height} pixels, not {width}x{height}")
        rows, columns = (
            torch.arange(padded, device=frames.device).clamp(max=side - 1)
            for padded, side in zip(self._padded_shape, self.frame_shape, strict=True)
        )
        if self._padded_shape != self.frame_shape:
            frames = frames[..., rows[:, None], columns, :]
        height, width = self.tile_shape
        return [frames[..., top : top + height, left : left + width, :] for top, left in self.origins]

    def blend(self, tiles: Tensor) -> Tensor:
        """Flows of all tiles (tiles, h, w, 2), on any device -> flow of the frame (H, W, 2), fp32, on the CPU.

        Each pixel is the mean of its tiles, weighted by its distance to their edges, the vertical times the horizontal
        one. Where they agree it is their value, exactly: weights are whole numbers, and their products with fp32 are
        exact in float64.
        """
        height, width = self.tile_shape
        # The smaller of both distances, which was published, makes seams that end at the frame's border: there it is
        # the distance to that border, which says nothing about the tiles beside each other.
        weight = (_distance_to_end(height)[:, None] * _distance_to_end(width))[..., None]
        total = torch.zeros(*self._padded_shape, tiles.shape[-1], dtype=torch.float64)
        weights = torch.zeros(*self._padded_shape, 1, dtype=torch.float64)
        for tile, (top, left) in zip(tiles.float().cpu(), self.origins, strict=True):
            place = slice(top, top + height), slice(left, left + width)
            total[place] += tile * weight
            weights[place] += weight
        return (total / weights)[: self.frame_shape[0], : self.frame_shape[1]].float()

    @property
    def _padded_shape(self) -> tuple[int, int]:
        height, width = map(max, self.frame_shape, self.tile_shape)
        return height, width


def _origins(length: int, tile: int, min_overlap: int) -> list[int]:
    return [*range(0, length - tile, tile - min_overlap), length - tile]


def _distance_to_end(length: int) -> Tensor:
    """1, 2, ... up to the middle and back to 1, (length,), float64."""
    forward = torch.arange(1, length + 1, dtype=torch.float64)
    return torch.minimum(forward, forward.flip(0))
