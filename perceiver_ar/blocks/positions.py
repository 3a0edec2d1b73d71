"""Where an element is: rotary embeddings (Su et al. 2021, https://arxiv.org/abs/2104.09864), positions in documents,
Fourier features of positions in arrays (Perceiver, https://arxiv.org/abs/2103.03206).

Tables are fp32 and computed on use: they are in no state dict, and casting a model to bf16 leaves every angle exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def token_positions(key_valid: Tensor) -> Tensor:
    """How many valid tokens of its row come before each token: (batch, length) bool -> int64."""
    return key_valid.cumsum(dim=-1) - key_valid.long()


def restart_positions(positions: Tensor, segments: Tensor) -> Tensor:
    """`positions` counted from the first token of each segment: both (batch or 1, length), ascending in every row."""
    starts = F.pad(segments.diff(dim=-1) != 0, (1, 0))
    return positions - (positions * starts).cummax(dim=-1).values


def rotary_frequencies(
    channels: int, base: float, *, endpoint: bool = False, device: torch.device | None = None
) -> Tensor:
    """Radians per position of each rotated channel pair, (channels // 2,) fp32.

    `base ** (-2 i / channels)`. With `endpoint`, the pairs are spread up to ``1 / base`` inclusively, which is how
    google-research/perceiver-ar spreads them (its `max_wavelength` is our `base`).
    """
    pairs = channels // 2
    if endpoint:
        exponents = torch.linspace(0, 1, pairs, device=device)
    else:
        exponents = torch.arange(pairs, dtype=torch.float32, device=device) / pairs
    return base**-exponents


class RotaryAngles(NamedTuple):
    """Cosines and sines, each (batch or 1, 1, length, pairs) fp32, for the tokens they travel with."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def at(cls, positions: Tensor, frequencies: Tensor) -> RotaryAngles:
        """The angles of `positions` (batch or 1, length)."""
        angles = positions[:, None, :, None].float() * frequencies
        return cls(angles.cos(), angles.sin())

    def last(self, length: int) -> RotaryAngles:
        """The angles of the last `length` tokens: right-aligned."""
        start = self.cos.shape[2] - length
        return RotaryAngles(self.cos[:, :, start:], self.sin[:, :, start:])


class _Rotation(torch.autograd.Function):
    # A rotation is undone by its inverse, so the gradient needs the angles but not the input: nothing else is kept.

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grads[0], cos, -sin), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    pairs = cos.shape[-1]
    first, second, rest = x.split((pairs, pairs, x.shape[-1] - 2 * pairs), dim=-1)
    rotated = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat((*(half.to(x.dtype) for half in rotated), rest), dim=-1)


def rotate(x: Tensor, angles: RotaryAngles) -> Tensor:
    """Rotate the first ``2 * pairs`` channels of queries or keys (batch, heads, length, channels) by their angles.

    Channel `i` of the first half pairs with channel `i` of the second. Computed in fp32, returned in `x`'s dtype.
    """
    # An autograd function costs a decoding step more than its rotation does.
    return _Rotation.apply(x, *angles) if x.requires_grad else _rotate(x, *angles)


def grid_positions(shape: Sequence[int], *, device: torch.device | None = None) -> Tensor:
    """Where each element of an array is, (elements, axes) fp32, elements in row-major order: from -1 to 1 on each axis.

    An axis of one element has it at -1.
    """
    axes = [torch.linspace(-1, 1, size, device=device) for size in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def fourier_features(positions: Tensor, num_bands: int, max_resolution: Sequence[int]) -> Tensor:
    """(..., axes) in [-1, 1] -> (..., axes * (2 * num_bands + 1)) fp32.

    The frequencies of an axis are spread linearly from 1 to half its `max_resolution`, the Nyquist frequency of so many
    elements. The order is: raw positions, sines of all frequencies of the first axis, of the second, ..., then cosines.
    """
    positions = positions.float()
    bands = [torch.linspace(1, size / 2, num_bands, device=positions.device) for size in max_resolution]
    angles = (math.pi * (positions[..., None] * torch.stack(bands))).flatten(-2)
    return torch.cat((positions, angles.sin(), angles.cos()), dim=-1)
