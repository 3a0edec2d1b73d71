"""RandAugment (https://arxiv.org/abs/1909.13719): some of sixteen operations, drawn for each image.

The operations are Pillow's, on bytes: several times faster on CPUs than any on float tensors. Their strengths are those
of the original implementation, with translation and cutout as fractions of the sides.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

GRAY = 128
MAX_MAGNITUDE = 10

Strength = float
"""Magnitude as a fraction of the largest."""
Operation = Callable[[Image.Image, Strength, np.random.Generator], Image.Image]


def rand_augment(image: Image.Image, operations: int, magnitude: float, random: np.random.Generator) -> Image.Image:
    """`image`, gray or RGB, after `operations` of `OPERATIONS`, drawn with repetition; `magnitude` is 0 to 10."""
    for number in random.integers(len(OPERATIONS), size=operations):
        image = OPERATIONS[number](image, magnitude / MAX_MAGNITUDE, random)
    return image


def affine(image: Image.Image, matrix: np.ndarray, fill: int) -> Image.Image:
    """`image` whose pixel (x, y) is read at `matrix` (2, 3) @ (x, y, 1), both from the middle; `fill` outside of it."""
    middle = np.array(image.size) / 2
    offset = matrix[:, 2] + middle - matrix[:, :2] @ middle
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        tuple(np.column_stack([matrix[:, :2], offset]).ravel()),
        Image.Resampling.BILINEAR,
        fillcolor=fill if image.mode == "L" else (fill,) * len(image.mode),
    )


def rotation(degrees: float) -> np.ndarray:
    """(2, 2) that turns pictures counter-clockwise, as `affine` reads them."""
    sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    return np.array([[cosine, -sine], [sine, cosine]])


def _either_side(value: float, random: np.random.Generator) -> float:
    return value if random.random() < 0.5 else -value


def _rotate(image: Image.Image, strength: Strength, random: np.random.Generator) -> Image.Image:
    turned = rotation(_either_side(30 * strength, random))
    return affine(image, np.column_stack([turned, np.zeros(2)]), GRAY)


def _shear(axis: int, image: Image.Image, strength: Strength, random: np.random.Generator) -> Image.Image:
    matrix = np.eye(2, 3)
    matrix[axis, 1 - axis] = _either_side(0.3 * strength, random)
    return affine(image, matrix, GRAY)


def _translate(axis: int, image: Image.Image, strength: Strength, random: np.random.Generator) -> Image.Image:
    matrix = np.eye(2, 3)
    matrix[axis, 2] = _either_side(100 / 224 * strength * image.size[axis], random)
    return affine(image, matrix, GRAY)


def _enhance(
    kind: Callable[[Image.Image], ImageEnhance._Enhance],
    image: Image.Image,
    strength: Strength,
    random: np.random.Generator,
) -> Image.Image:
    return kind(image).enhance(1.8 * strength + 0.1)


def _solarize_add(image: Image.Image, strength: Strength, random: np.random.Generator) -> Image.Image:
    added = int(110 * strength)
    return image.point([min(level + added, 255) if level < GRAY else level for level in range(256)] * len(image.mode))


def _cutout(image: Image.Image, strength: Strength, random: np.random.Generator) -> Image.Image:
    """A gray rectangle; what of it would lie outside is lost."""
    middle = [int(random.integers(side)) for side in image.size]
    reach = [int(40 / 224 * strength * side) for side in image.size]
    corner = middle[0] - reach[0], middle[1] - reach[1]
    cut = image.copy()
    cut.paste(Image.new(image.mode, (2 * reach[0], 2 * reach[1]), (GRAY,) * len(image.mode)), corner)
    return cut


OPERATIONS: list[Operation] = [
    lambda image, strength, random: ImageOps.autocontrast(image),
    lambda image, strength, random: ImageOps.equalize(image),
    lambda image, strength, random: ImageOps.invert(image),
    _rotate,
    lambda image, strength, random: ImageOps.posterize(image, max(1, int(4 * strength))),
    lambda image, strength, random: ImageOps.solarize(image, int(256 * strength)),
    partial(_enhance, ImageEnhance.Color),
    partial(_enhance, ImageEnhance.Contrast),
    partial(_enhance, ImageEnhance.Brightness),
    partial(_enhance, ImageEnhance.Sharpness),
    partial(_shear, 0),
    partial(_shear, 1),
    partial(_translate, 0),
    partial(_translate, 1),
    _cutout,
    _solarize_add,
]
