"""What `transformers` knows as image processors: from images to what a model reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, BatchFeature

from perceiver_ar.processors.image import image_tensor, preprocess

AnyImage = Image.Image | np.ndarray | Tensor


class PerceiverIOImageProcessor(BaseImageProcessor):
    """Takes the middle of an image, resizes it and normalises it; ``preprocessor_config.json`` has the arguments.

    Args:
        image_shape: Height and width of what the model reads.
        num_channels: With 1, 3 or 4 of them Pillow images are converted to gray, RGB or RGBA.
        crop_fraction: Of the sides of the largest rectangle of that shape in the image, what is read of it.
        image_mean: Of each channel, as a fraction of white.
        image_std: Likewise.
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (224, 224),
        num_channels: int = 3,
        crop_fraction: float = 0.875,
        image_mean: Sequence[float] = (0.485, 0.456, 0.406),
        image_std: Sequence[float] = (0.229, 0.224, 0.225),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.image_shape = list(image_shape)
        self.num_channels = num_channels
        self.crop_fraction = crop_fraction
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def preprocess(self, images: AnyImage | Sequence[AnyImage], return_tensors: str = "pt", **_: Any) -> BatchFeature:
        """`pixel_values` (images, channels, height, width) in float32, of one image or several.

        Images are Pillow's, arrays (height, width, channels) or tensors (channels, height, width) of bytes.

        Raises ValueError for what is something else.
        """
        several = images if isinstance(images, Sequence) else [images]
        pixels = [
            preprocess(
                image_tensor(image, self.num_channels),
                shape=self.image_shape,
                crop_fraction=self.crop_fraction,
                mean=self.image_mean,
                std=self.image_std,
            )
            for image in several
        ]
        return BatchFeature({"pixel_values": torch.stack(pixels)}, tensor_type=return_tensors)


__all__ = ["PerceiverIOImageProcessor"]
