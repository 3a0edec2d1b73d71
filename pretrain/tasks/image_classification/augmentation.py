"""What training does to an image before the model sees it, and to pairs of them.

Every random choice about an image comes from the generator of its sample: it is the same on any number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from perceiver_ar.processors.image import Box, central_box, crop_and_resize, image_size, image_tensor
from pretrain.tasks.image_classification.config import AugmentationSection
from pretrain.tasks.image_classification.rand_augment import affine, rand_augment, rotation

ASPECTS = (3 / 4, 4 / 3)
"""Of random crops, relative to the model's shape, as is usual on ImageNet."""


def augment(
    image: Tensor,
    shape: Sequence[int],
    crop_fraction: float,
    settings: AugmentationSection,
    random: np.random.Generator,
) -> Tensor:
    """(C, \\*shape) uint8 of an image (C, H, W) uint8."""
    if settings.crop_area is None:
        box = central_box(image_size(image), shape, crop_fraction)
    else:
        box = random_box(image_size(image), shape, settings.crop_area, random)
    image = crop_and_resize(image, box, shape)
    if settings.flip and random.random() < 0.5:
        image = image.flip(-1)
    moves = any((settings.rotate, settings.zoom, settings.shear, settings.translate))
    if not moves and settings.rand_augment is None:
        return image
    channels = image.shape[0]
    picture = Image.fromarray(image[0].numpy() if channels == 1 else image.permute(1, 2, 0).contiguous().numpy())
    if moves:
        picture = affine(picture, random_motion(shape, settings, random), fill=0)
    if (policy := settings.rand_augment) is not None:
        picture = rand_augment(picture, policy.operations, policy.magnitude, random)
    return image_tensor(picture, channels)


def random_box(
    size: tuple[int, int], shape: Sequence[int], area: tuple[float, float], random: np.random.Generator
) -> Box:
    """A rectangle in an image of `size` (height, width): its share of the area is uniform in `area`."""
    (height, width), share = size, random.uniform(*area)
    aspect = shape[1] / shape[0] * math.exp(random.uniform(math.log(ASPECTS[0]), math.log(ASPECTS[1])))
    box_height = min(height, max(1, round(math.sqrt(height * width * share / aspect))))
    box_width = min(width, max(1, round(math.sqrt(height * width * share * aspect))))
    top, left = random.integers(height - box_height + 1), random.integers(width - box_width + 1)
    return Box(int(top), int(left), box_height, box_width)


def random_motion(shape: Sequence[int], settings: AugmentationSection, random: np.random.Generator) -> np.ndarray:
    """(2, 3) for `affine`: a rotation, a shear, a zoom and a translation."""
    turned = rotation(random.uniform(-settings.rotate, settings.rotate))
    sheared = np.array([[1.0, random.uniform(-settings.shear, settings.shear)], [0.0, 1.0]])
    zoomed = np.diag(random.uniform(1 - settings.zoom, 1 + settings.zoom, size=2))
    moved = random.uniform(-settings.translate, settings.translate, size=2) * [shape[1], shape[0]]
    return np.column_stack([turned @ sheared @ zoomed, moved])


def mix_pairs(
    images: Tensor, labels: Tensor, settings: AugmentationSection, generators: Sequence[np.random.Generator]
) -> tuple[Tensor, Tensor, Tensor]:
    """MixUp or CutMix of each image with its neighbour, of rows 0 and 1, 2 and 3, ...

    Args:
        images: (rows, C, H, W) float; an even number of rows.
        labels: (rows,) int64.

    Returns:
        The images; (rows, 2) int64 labels of an image and of what was mixed in; (rows,) the share of the image itself.
    """
    partners = torch.arange(len(images)) ^ 1
    mixed, shares = images.clone(), torch.ones(len(images))
    for row, random in enumerate(generators):
        other = images[partners[row]]
        cut = settings.cutmix > 0 and (settings.mixup == 0 or random.random() < 0.5)
        alpha = settings.cutmix if cut else settings.mixup
        share = random.beta(alpha, alpha)
        if cut:
            box = _pasted_box(image_size(images), 1 - share, random)
            inside = (slice(None), slice(box.top, box.top + box.height), slice(box.left, box.left + box.width))
            mixed[row][inside] = other[inside]
            share = 1 - box.height * box.width / images[row, 0].numel()
        else:
            mixed[row] = share * images[row] + (1 - share) * other
        shares[row] = share
    return mixed, torch.stack([labels, labels[partners]], dim=1), shares


def _pasted_box(size: tuple[int, int], area: float, random: np.random.Generator) -> Box:
    """A rectangle with the image's aspect and that share of its area, cut off at the edges."""
    sides = [side * math.sqrt(area) for side in size]
    middles = [random.uniform(0, side) for side in size]
    (top, bottom), (left, right) = (
        (max(0, round(middle - side / 2)), min(limit, round(middle + side / 2)))
        for middle, side, limit in zip(middles, sides, size, strict=True)
    )
    return Box(top, left, max(0, bottom - top), max(0, right - left))
