"""Images as image classifiers read them: decoded, cropped, resized, normalised.

The central crop and the bicubic resizing are those of the published ImageNet models.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's name for images of so many channels."""


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int


def decode_image(content: bytes | Path, channels: int) -> Tensor:
    """(channels, height, width) uint8, upright, converted to gray (1), colour (3) or colour with opacity (4 channels).

    Raises:
        ValueError: It is not an image, or damaged.
        OSError: The file cannot be read.
    """
    data = content if isinstance(content, bytes) else content.read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image_tensor(ImageOps.exif_transpose(image), channels)
    # Pillow's decoders raise whatever the damage makes them stumble over.
    except Exception as error:
        reason = "no known image format" if isinstance(error, Image.UnidentifiedImageError) else error
        raise ValueError(f"is not an image that can be decoded ({reason})") from None


def image_tensor(image: Image.Image | np.ndarray | Tensor, channels: int) -> Tensor:
    """(channels, height, width) uint8 of a Pillow image, converted as needed, or of an array or tensor of bytes.

    Raises ValueError where an array is not (height, width) or (height, width, channels), or a tensor not (channels,
    height, width), of bytes; and for anything else.
    """
    if isinstance(image, Image.Image):
        if channels not in MODES:
            raise ValueError(f"a Pillow image has 1, 3 or 4 channels, the model reads {channels}")
        pixels = np.asarray(_eight_bits(image).convert(MODES[channels]))
        return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels).transpose(2, 0, 1).copy())
    if isinstance(image, np.ndarray):
        pixels = image[..., None] if image.ndim == 2 else image
        # numpy's strides may be negative, which torch's may not
        image = torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 0)))
    if not isinstance(image, Tensor):
        raise ValueError(f"an image must be Pillow's, an array or a tensor, not {type(image).__name__}")
    if image.dtype != torch.uint8 or image.ndim != 3 or 0 in image.shape:
        raise ValueError(f"an image must be bytes in three axes, not {image.dtype} of shape {tuple(image.shape)}")
    if image.shape[0] != channels:
        raise ValueError(f"an image has {image.shape[0]} channels, the model reads {channels}")
    return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """Pillow cuts 16-bit gray off at 255 instead of scaling it; some formats' has 32 bits in memory."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    # Of opacity in a palette Pillow warns wherever it is to become anything else.
    return image.convert("RGBA") if "transparency" in image.info else image


def image_size(image: Tensor) -> tuple[int, int]:
    """Height and width of (..., H, W)."""
    return image.shape[-2], image.shape[-1]


def central_box(size: tuple[int, int], shape: Sequence[int], fraction: float) -> Box:
    """The middle of an image of `size` (height, width).

    It has `fraction` of the sides of the largest rectangle in the image that is shaped like `shape`.
    """
    scale = min(size[0] / shape[0], size[1] / shape[1]) * fraction
    sides = max(1, int(shape[0] * scale + 1e-6)), max(1, int(shape[1] * scale + 1e-6))
    return Box((size[0] - sides[0]) // 2, (size[1] - sides[1]) // 2, *sides)


def crop_and_resize(image: Tensor, box: Box, shape: Sequence[int]) -> Tensor:
    """(C, \\*shape) of the pixels of (C, H, W) in `box`: bicubic, without aliasing. Both are uint8."""
    part = image[:, box.top : box.top + box.height, box.left : box.left + box.width]
    if part.shape[1:] == tuple(shape):
        return part
    return F.interpolate(part[None], size=tuple(shape), mode="bicubic", antialias=True)[0]


def normalize(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(..., C, H, W) float32 of uint8: scaled to [0, 1], less `mean`, divided by `std` of each channel."""
    centre, spread = (torch.tensor(values, device=image.device).view(-1, 1, 1) for values in (mean, std))
    return (image / 255 - centre) / spread


def preprocess(
    image: Tensor, *, shape: Sequence[int], crop_fraction: float, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """(C, \\*shape) float32 of an image (C, H, W) uint8: what a classifier is evaluated on."""
    box = central_box(image_size(image), shape, crop_fraction)
    return normalize(crop_and_resize(image, box, shape), mean, std)
