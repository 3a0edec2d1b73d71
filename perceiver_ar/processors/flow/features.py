"""Frames as an optical flow model reads them: each pixel with the eight around it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PATCH = 3
FLOW_SCALE = 20.0
"""Pixels per unit of a model's output, as in the published model."""


def frame_patches(frames: Tensor) -> Tensor:
    """RGB frames (..., H, W, 3), uint8 -> (..., 27, H, W), fp32: normalised to [-1, 1], all 3x3 patches.

    Channels are ordered (row, column, colour) of the patch; outside the frame there are zeros.

    Raises:
        ValueError: frames have other shapes or another dtype.
    """
    if frames.ndim < 3 or frames.shape[-1] != 3 or frames.dtype != torch.uint8:
        raise ValueError(f"frames: must be (..., H, W, 3) of uint8, not {tuple(frames.shape)} of {frames.dtype}")
    height, width = frames.shape[-3:-1]
    colours = frames.movedim(-1, -3).float() / 255 * 2 - 1
    padded = F.pad(colours, [PATCH // 2] * 4)
    shifts = [(row, column) for row in range(PATCH) for column in range(PATCH)]
    return torch.cat([padded[..., row : row + height, column : column + width] for row, column in shifts], dim=-3)
