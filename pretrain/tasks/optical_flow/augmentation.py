"""Random changes of pairs for training: which part of them is seen, how large, and in which light."""

from __future__ import annotations

import math

import numpy as np

from pretrain.tasks.optical_flow.config import AugmentationSection
from pretrain.tasks.optical_flow.pair import Pair, cut, flip

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
"""Of red, green and blue (ITU-R BT.601)."""


def strength(section: AugmentationSection, step: int) -> float:
    """0 in the first phase, then growing to 1."""
    if step < section.from_step:
        return 0.0
    return min(1.0, (step - section.from_step + 1) / (section.ramp_steps + 1))


def augment(
    pair: Pair, shape: tuple[int, int], section: AugmentationSection, amount: float, generator: np.random.Generator
) -> Pair:
    """A random part of a pair, of `shape` (height, width), changed by `amount` (0 to 1) of what `section` allows."""
    pair = _random_part(pair, shape, section.max_zoom**amount, generator)
    mirrored, upside_down = generator.random(2) < 0.5 * (section.flip and amount > 0)
    pair = flip(pair, horizontally=bool(mirrored), vertically=bool(upside_down))
    return pair._replace(frames=_relight(pair.frames, section, amount, generator))


def _random_part(pair: Pair, shape: tuple[int, int], max_zoom: float, generator: np.random.Generator) -> Pair:
    smallest = max(wanted / side for wanted, side in zip(shape, pair.shape, strict=True))
    least, most = math.log(max(smallest, 1 / max_zoom)), math.log(max_zoom)
    scale = math.exp(generator.uniform(least, most)) if most > 0 else 1.0
    room = [side - wanted / scale for wanted, side in zip(shape, pair.shape, strict=True)]
    top, left = (max(0.0, space * draw) for space, draw in zip(room, generator.random(2), strict=True))
    return cut(pair, shape, (left, top), scale)


def _relight(
    frames: np.ndarray, section: AugmentationSection, amount: float, generator: np.random.Generator
) -> np.ndarray:
    """Frames (2, height, width, 3) uint8 in other light: changes common to both, and smaller ones of each."""
    limits = amount * np.array([section.brightness, section.contrast, section.saturation])
    if not limits.any() and section.noise * amount == 0:
        return frames
    common, own = generator.uniform(-1, 1, 3), generator.uniform(-1, 1, (2, 3))
    factors = (1 + limits * ((1 - section.difference) * common + section.difference * own)).astype(np.float32)
    deviation = np.float32(generator.uniform(0, amount * section.noise))
    changed = np.empty_like(frames)
    for frame, (brightness, contrast, saturation), out in zip(frames, factors, changed, strict=True):
        colours = frame * brightness
        colours = colours.mean() + (colours - colours.mean()) * contrast
        gray = (colours @ LUMINANCE)[..., None]
        colours = gray + (colours - gray) * saturation
        colours += deviation * generator.standard_normal(colours.shape, np.float32)
        out[:] = np.clip(colours + 0.5, 0, 255).astype(np.uint8)
    return changed
