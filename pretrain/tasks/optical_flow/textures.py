"""What moves in generated pairs: pictures from a folder, or drawn noise where there are none."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np

from perceiver_ar.processors.formats import IMAGES
from pretrain.errors import InputError

KEPT = 128
"""Pictures that stay decoded: a small folder is decoded once."""


class Pictures:
    """Pictures (height, width, 3) uint8, decoded once if they are few, and never larger than is of use."""

    def __init__(self, paths: list[Path], shape: tuple[int, int]) -> None:
        """`shape` is that of the frames: a picture is reduced until it just covers twice as much."""
        self._paths = paths
        self._least = (2 * shape[0], 2 * shape[1])
        self._decoded = lru_cache(KEPT)(self._decode)

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """One of them. Raises InputError where its file holds no picture."""
        return self._decoded(int(generator.integers(len(self._paths))))

    def _decode(self, number: int) -> np.ndarray:
        from PIL import Image

        path, (height, width) = self._paths[number], self._least
        try:
            with Image.open(path) as image:
                image.draft("RGB", (width, height))  # a JPEG is decoded at a fraction of its size
                scale = min(1.0, max(height / image.height, width / image.width))
                size = max(2, math.ceil(image.width * scale)), max(2, math.ceil(image.height * scale))
                return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BOX))
        # Pillow's decoders raise whatever the damage makes them stumble over.
        except Exception as error:
            raise InputError(f"{path}: is no picture that can be read ({error})") from None


def find_pictures(folder: Path) -> list[Path]:
    """Every picture in and below `folder`, in a fixed order. Raises InputError where there is none."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of pictures")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES)
    if not found:
        raise InputError(f"{folder}: holds no picture ({', '.join(IMAGES)})")
    return found


def draw_texture(shape: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """A picture (height, width, 3) uint8 of coloured noise at every scale, with sharp edges where the noise is cut."""
    fields = np.zeros((*shape, 3), np.float32)
    for octave in range(1, max(2, round(math.log2(min(shape))))):
        cells = min(shape) / 2**octave
        grid = generator.standard_normal((*(math.ceil(side / cells) + 1 for side in shape), 3), np.float32)
        fields += _enlarge(grid, cells, shape) * np.float32(generator.uniform(0.3, 1) * 0.8**octave)
    patches = np.sign(fields[..., :1] - np.float32(generator.normal(0, 0.3)))
    colours = fields @ generator.standard_normal((3, 3), np.float32)
    colours += patches * generator.standard_normal(3, np.float32)
    return (255 / (1 + np.exp(-colours))).astype(np.uint8)


def _enlarge(grid: np.ndarray, times: float, shape: tuple[int, int]) -> np.ndarray:
    """A small grid (rows, columns, channels) -> (height, width, channels), bilinear: one axis after the other."""
    for axis, side in enumerate(shape):
        places = np.arange(side, dtype=np.float32) / np.float32(times)
        first = places.astype(np.int32)
        share = np.expand_dims(places - first, axis=tuple(range(axis)) + tuple(range(axis + 1, 3)))
        grid = grid.take(first, axis) * (1 - share) + grid.take(first + 1, axis) * share
    return grid
