"""Two frames and the flow between them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Pair(NamedTuple):
    """Where flow is known in both directions, there are two `directions`: first to second frame, and back."""

    frames: np.ndarray
    """(2, height, width, 3) uint8."""
    flow: np.ndarray
    """(directions, height, width, 2) float32: how far each pixel goes to where it is in the other frame, x before y."""
    valid: np.ndarray
    """(directions, height, width) bool: where the flow is known."""
    occluded: np.ndarray
    """(directions, height, width) bool: what the other frame does not show, as far as that is known."""

    @property
    def shape(self) -> tuple[int, int]:
        height, width = self.frames.shape[1:3]
        return height, width


def sample_bilinear(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Colours of `picture` (height, width, channels) at `points` (..., 2), x before y; mirrored beyond its edges."""
    height, width = picture.shape[:2]
    x, y = _mirror(points[..., 0], width), _mirror(points[..., 1], height)
    left, top = np.minimum(x.astype(np.int32), width - 2), np.minimum(y.astype(np.int32), height - 2)
    right_share, bottom_share = (x - left)[..., None], (y - top)[..., None]
    flat, corner = picture.reshape(-1, picture.shape[-1]), top * width + left
    upper = flat[corner] * (1 - right_share) + flat[corner + 1] * right_share
    lower = flat[corner + width] * (1 - right_share) + flat[corner + width + 1] * right_share
    return upper * (1 - bottom_share) + lower * bottom_share


def _mirror(positions: np.ndarray, size: int) -> np.ndarray:
    last = size - 1
    return last - np.abs(positions % (2 * last) - last)


def cut(pair: Pair, shape: tuple[int, int], corner: tuple[float, float], scale: float = 1.0) -> Pair:
    """What of a pair lies in a window of `shape` (height, width) whose `corner` (x, y) is at a place of its frames,
    enlarged `scale` times.

    Flow is that of the nearest pixel: between two things it must be of one of them, and it may not be known everywhere.
    """
    height, width = shape
    if scale == 1:
        left, top = round(corner[0]), round(corner[1])
        rows, columns = slice(top, top + height), slice(left, left + width)
        return Pair(*(values[:, rows, columns] for values in pair))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    points = (np.stack([x, y], axis=-1) + np.float32(0.5)) / np.float32(scale) - np.float32(0.5)
    points += np.asarray(corner, np.float32)
    frames = np.stack([sample_bilinear(frame, points) + 0.5 for frame in pair.frames]).astype(np.uint8)
    nearest = np.clip(np.rint(points).astype(np.int32), 0, [pair.shape[1] - 1, pair.shape[0] - 1])
    flow, valid, occluded = (values[:, nearest[..., 1], nearest[..., 0]] for values in pair[1:])
    return Pair(frames, flow * np.float32(scale), valid, occluded)


def flip(pair: Pair, *, horizontally: bool, vertically: bool) -> Pair:
    columns = slice(None, None, -1 if horizontally else 1)
    rows = slice(None, None, -1 if vertically else 1)
    frames, flow, valid, occluded = (values[:, rows, columns] for values in pair)
    signs = np.array([-1 if horizontally else 1, -1 if vertically else 1], np.float32)
    return Pair(frames, flow * signs, valid, occluded)
