"""Pairs of frames with exactly known flow: layers of pictures, each with a motion of its own, over one another.

A scene is a background and some blobs in front of it. The camera moves everything, each blob moves by itself as well.
Both frames are rendered from the same layers, and flow is read off the motion of what is in front: in both directions,
without approximation, also where something is hidden in the other frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pretrain.tasks.optical_flow.config import MotionSection
from pretrain.tasks.optical_flow.motion import Motion, draw_motion
from pretrain.tasks.optical_flow.pair import Pair, sample_bilinear
from pretrain.tasks.optical_flow.textures import Pictures, draw_texture

HARMONICS = 5
"""Bumps around a blob's outline."""


@dataclass(frozen=True)
class Blob:
    """A shape about `centre`: ``radius * (1 + sum of bumps)`` at each angle."""

    centre: np.ndarray
    radius: float
    bumps: np.ndarray
    phases: np.ndarray

    def depth(self, points: np.ndarray) -> np.ndarray:
        """Pixels that points (..., 2) lie within the outline, measured towards the centre; negative outside of it."""
        offset = points - self.centre
        distance = np.hypot(offset[..., 0], offset[..., 1])
        depth = -distance
        near = distance < self.radius * (1 + self.bumps.sum())
        angle = np.arctan2(offset[near, 1], offset[near, 0])
        outline = np.ones_like(angle)
        for number, (bump, phase) in enumerate(zip(self.bumps, self.phases, strict=True), start=1):
            outline += np.float32(bump) * np.sin(number * angle + np.float32(phase))
        depth[near] += np.float32(self.radius) * outline
        depth[~near] = -1
        return depth


@dataclass(frozen=True)
class Layer:
    picture: np.ndarray
    origin: np.ndarray
    """Where in the picture the first frame's corner lies."""
    scale: float
    """Pixels of the picture in a pixel of the first frame."""
    motion: Motion
    blob: Blob | None
    """None: it covers everything."""

    def colours(self, points: np.ndarray) -> np.ndarray:
        return sample_bilinear(self.picture, points * np.float32(self.scale) + self.origin)


class Scene:
    """Layers from back to front, seen in frames of (height, width)."""

    def __init__(self, layers: list[Layer], shape: tuple[int, int]) -> None:
        self.layers, self.shape = layers, shape
        y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
        self._pixels = np.stack([x, y], axis=-1)

    def pair(self) -> Pair:
        """Its two frames, and flow in both directions."""
        here = [self._pixels] * len(self.layers)
        there = [layer.motion.inverse(self._pixels) for layer in self.layers]
        (first, first_owner), (second, second_owner) = self._render(here), self._render(there)
        flow = np.zeros((2, *self._pixels.shape), np.float32)
        for number, layer in enumerate(self.layers):
            mine = first_owner == number
            flow[0, mine] = layer.motion.forward(self._pixels[mine]) - self._pixels[mine]
            mine = second_owner == number
            flow[1, mine] = there[number][mine] - self._pixels[mine]
        occluded = [
            self._hidden(self._pixels + flow[0], first_owner, in_second=True),
            self._hidden(self._pixels + flow[1], second_owner, in_second=False),
        ]
        return Pair(np.stack([first, second]), flow, np.ones(flow.shape[:3], bool), np.stack(occluded))

    def _render(self, points: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """A frame (height, width, 3) and the number of the layer in front at each of its pixels.

        `points` are, for each layer, the places in the first frame that it is to be drawn from.
        """
        frame = self.layers[0].colours(points[0])
        owner = np.zeros(self.shape, np.int8)
        for number, layer in enumerate(self.layers[1:], start=1):
            assert layer.blob is not None
            depth = layer.blob.depth(points[number])
            touched = depth > -0.5
            opacity = np.minimum(depth[touched] + 0.5, 1)[:, None]
            frame[touched] += opacity * (layer.colours(points[number][touched]) - frame[touched])
            owner[depth >= 0] = number
        return (frame + 0.5).astype(np.uint8), owner

    def _hidden(self, places: np.ndarray, owner: np.ndarray, *, in_second: bool) -> np.ndarray:
        """Whether what belongs to layer `owner` is out of sight at `places` of a frame."""
        last = np.array([self.shape[1] - 1, self.shape[0] - 1])
        hidden: np.ndarray = np.any((places < 0) | (places > last), axis=-1)
        for number, layer in enumerate(self.layers[1:], start=1):
            assert layer.blob is not None
            behind = owner < number
            points = layer.motion.inverse(places[behind]) if in_second else places[behind]
            hidden[behind] |= layer.blob.depth(points) >= 0
        return hidden


def draw_scene(
    shape: tuple[int, int], limits: MotionSection, pictures: Pictures | None, generator: np.random.Generator
) -> Scene:
    """A random scene; its textures are drawn too where there are no `pictures`.

    Raises:
        InputError: A picture cannot be read.
    """
    height, width = shape
    middle = np.array([(width - 1) / 2, (height - 1) / 2], np.float32)
    camera = draw_motion(limits, middle, min(shape), generator)
    layers = [Layer(*_crop(shape, pictures, generator), camera, None)]
    for _ in range(generator.integers(limits.max_blobs + 1)):
        blob = _draw_blob(shape, generator)
        own = draw_motion(limits, blob.centre, 2 * blob.radius, generator)
        motion = Motion(own.steps + camera.steps)
        layers.append(Layer(*_crop(shape, pictures, generator), motion, blob))
    return Scene(layers, shape)


def _crop(
    shape: tuple[int, int], pictures: Pictures | None, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, float]:
    """A picture, where in it the frame begins, and at which scale: pictures are enlarged up to twice, never reduced."""
    picture = draw_texture(shape, generator) if pictures is None else pictures.draw(generator)
    scale = generator.uniform(0.5, 1)
    room = np.array([picture.shape[1] - scale * shape[1], picture.shape[0] - scale * shape[0]])
    return picture, (generator.random(2) * np.maximum(room, 0)).astype(np.float32), scale


def _draw_blob(shape: tuple[int, int], generator: np.random.Generator) -> Blob:
    height, width = shape
    return Blob(
        centre=(generator.random(2) * (width, height)).astype(np.float32),
        radius=min(shape) * generator.uniform(0.1, 0.4),
        bumps=generator.uniform(0, 0.5, HARMONICS) / np.arange(1, HARMONICS + 1),
        phases=generator.uniform(0, 2 * math.pi, HARMONICS),
    )
