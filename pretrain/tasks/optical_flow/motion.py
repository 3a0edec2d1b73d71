"""Motions of the image plane that can be undone exactly, so that flow is known exactly in both directions.

A motion is a chain of affine maps and wave shears. A shear moves points along the crests of a sine wave: what the wave
depends on stays as it is, so subtracting the same wave undoes it. Chains of them bend the plane smoothly without ever
folding it, and no inverse has to be searched for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pretrain.tasks.optical_flow.config import MotionSection


@dataclass(frozen=True)
class Affine:
    """``matrix @ (x - centre) + centre + shift``."""

    matrix: np.ndarray
    centre: np.ndarray
    shift: np.ndarray

    def forward(self, points: np.ndarray) -> np.ndarray:
        return _apply(self.matrix, points, self.centre + self.shift - self.matrix @ self.centre)

    def inverse(self, points: np.ndarray) -> np.ndarray:
        inverse = np.linalg.inv(self.matrix)
        return _apply(inverse, points, self.centre - inverse @ (self.centre + self.shift))


def _apply(matrix: np.ndarray, points: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """``matrix @ point + offset`` of points (..., 2): numpy's matrix products are slow for such small ones."""
    x_column, y_column, offset = (values.astype(points.dtype) for values in (*matrix.T, offset))
    return points[..., :1] * x_column + points[..., 1:] * y_column + offset


@dataclass(frozen=True)
class Wave:
    """``x + amplitude * crest * sin(2 pi / length * normal . x + phase)``; `crest` is at right angles to `normal`."""

    amplitude: float
    length: float
    angle: float
    """Of the normal."""
    phase: float

    def _offset(self, points: np.ndarray) -> np.ndarray:
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        along = points[..., 0] * cos + points[..., 1] * sin
        height = self.amplitude * np.sin(along * (2 * math.pi / self.length) + self.phase)
        return np.stack([-sin * height, cos * height], axis=-1)

    def forward(self, points: np.ndarray) -> np.ndarray:
        return points + self._offset(points)

    def inverse(self, points: np.ndarray) -> np.ndarray:
        return points - self._offset(points)


@dataclass(frozen=True)
class Motion:
    """Where points (..., 2) of the first frame, x before y in pixels, are in the second: `steps`, one by one."""

    steps: tuple[Affine | Wave, ...]

    def forward(self, points: np.ndarray) -> np.ndarray:
        for step in self.steps:
            points = step.forward(points)
        return points

    def inverse(self, points: np.ndarray) -> np.ndarray:
        for step in reversed(self.steps):
            points = step.inverse(points)
        return points


WAVES = 3


def draw_motion(limits: MotionSection, centre: np.ndarray, side: float, generator: np.random.Generator) -> Motion:
    """A random motion about `centre` of something `side` pixels wide.

    Shift, turn, zoom and bend are drawn evenly up to their limits, each by itself: slow motions are as common as fast.
    """
    angle, direction = generator.uniform(-limits.max_rotation, limits.max_rotation), generator.uniform(0, 2 * math.pi)
    zoom = limits.max_zoom ** generator.uniform(-1, 1)
    distance = generator.uniform(0, limits.max_shift)
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    affine = Affine(
        zoom * np.array([[cos, -sin], [sin, cos]]),
        centre,
        distance * np.array([math.cos(direction), math.sin(direction)]),
    )
    waves = (
        Wave(
            amplitude=generator.uniform(0, limits.max_bend) / WAVES,
            length=side * generator.uniform(0.5, 2),
            angle=generator.uniform(0, 2 * math.pi),
            phase=generator.uniform(0, 2 * math.pi),
        )
        for _ in range(WAVES)
    )
    return Motion((*waves, affine))
