"""Clips that are drawn instead of read: coloured shapes that move on a coloured background and sound as they do.

Each class is a shape that moves along one axis. The shape has a tone, which grows louder towards the right or the lower
edge: picture, sound and class tell of each other, and what is hidden of a clip can be made up from the rest.
"""

from __future__ import annotations

import numpy as np
import xxhash
from numpy.typing import NDArray

from perceiver_ar.processors.clips import Clip, ClipShape
from pretrain.tasks.examples import sample_generator

SHAPES = ("disc", "square", "diamond", "ring")
AXES = ("down", "across")
CLASSES = tuple(f"{shape} {axis}" for shape in SHAPES for axis in AXES)
LOWEST_TONE = 220.0
"""Hz, of discs; each next shape sounds a fifth higher."""


class SyntheticClips:
    """Clips `first` to ``first + count`` of all that there are."""

    classes = CLASSES

    def __init__(self, first: int, count: int, shape: ClipShape) -> None:
        self._first, self._shape = first, shape
        # Not in turn: clips spread evenly over all of them are to be of all classes.
        self.labels = (np.arange(first, first + count) * 2654435761 >> 16) % len(CLASSES)
        self.fingerprint = xxhash.xxh3_128_hexdigest(f"{first} {count} {shape}".encode())

    def clip(self, number: int, place: float) -> Clip:
        """There is but one clip of each, at whatever `place`."""
        shape, draw = self._shape, sample_generator(0, self._first + number)
        kind, axis = divmod(int(self.labels[number]), len(AXES))
        start, speed, aside = draw.random(3)
        background, foreground = _colours(draw)
        size = draw.uniform(0.15, 0.3)
        picture_times = np.arange(shape.num_frames) / shape.num_frames
        sound_times = np.arange(shape.num_samples) / shape.num_samples
        along = _bounce(start + (0.5 + speed) * picture_times)
        aside = np.full_like(along, aside)
        centres = np.stack((along, aside) if AXES[axis] == "down" else (aside, along), axis=1)
        cover = np.stack([_cover(SHAPES[kind], centre, size, shape.height, shape.width) for centre in centres])
        pixels = background + cover[:, None] * (foreground[:, None, None] - background)
        tone = np.sin(2 * np.pi * LOWEST_TONE * 1.5**kind * shape.seconds * sound_times)
        loudness = 0.1 + 0.8 * _bounce(start + (0.5 + speed) * sound_times)
        return Clip(np.round(255 * pixels).astype(np.uint8), (tone * loudness).astype(np.float32))

    def place(self, number: int) -> str:
        return f"synthetic clip {self._first + number}"


def _bounce(way: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where in [0, 1] something is that has gone that far to and fro."""
    return 1 - np.abs(1 - way % 2)


def _colours(draw: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A dark background (3, 1, 1) and a bright shape (3,)."""
    return draw.uniform(0, 0.5, (3, 1, 1)), draw.uniform(0.5, 1, 3)


def _cover(shape: str, centre: NDArray[np.float64], size: float, height: int, width: int) -> NDArray[np.float64]:
    """How much of each pixel a shape covers, (height, width) in [0, 1]. The `centre`, in [0, 1], leaves it inside."""
    side = min(height, width)
    radius = size * side
    room = np.array([height, width]) - 2 * radius
    y, x = (radius + centre * room)[:, None, None] - np.mgrid[:height, :width] - 0.5
    distance = {
        "disc": lambda: np.hypot(x, y) - radius,
        "square": lambda: np.maximum(np.abs(x), np.abs(y)) - 0.85 * radius,
        "diamond": lambda: (np.abs(x) + np.abs(y)) / np.sqrt(2) - 0.7 * radius,
        "ring": lambda: np.abs(np.hypot(x, y) - 0.7 * radius) - 0.25 * radius,
    }[shape]()
    return np.clip(0.5 - distance, 0, 1)
