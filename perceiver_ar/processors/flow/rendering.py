"""Optical flow as colours: the direction is the hue, the speed the saturation, and what rests is white."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

MAX_FLOW = 24.0
"""Pixels at which colours are fully saturated, as in the renderings of the published model."""


def render_flow(flow: ArrayLike, max_flow: float = MAX_FLOW) -> NDArray[np.uint8]:
    """Flow (H, W, 2), x and y in pixels -> RGB (H, W, 3).

    Colours of the HSV model with full value: red to the right, yellow-green downwards, cyan to the left, violet
    upwards. Saturation is full from `max_flow` pixels on.
    """
    x, y = np.moveaxis(np.asarray(flow, np.float32), -1, 0)
    hue = np.arctan2(y, x) / (2 * np.pi)
    saturation = np.clip(np.hypot(x, y) / max_flow, 0, 1)
    # With full value, a channel is what saturation leaves of white outside its third of the circle of hues.
    from_red = (hue[..., None] - np.array([0, 1 / 3, 2 / 3])) % 1
    colours = np.clip(2 - 6 * np.minimum(from_red, 1 - from_red), 0, 1)
    return np.rint(255 * (1 - saturation[..., None] * (1 - colours))).astype(np.uint8)


def color_wheel(size: int) -> NDArray[np.uint8]:
    """The legend of `render_flow`, RGBA (size, size, 4): the colour of the flow from the centre to each point.

    The rim is at the flow of full saturation; what lies outside is transparent.
    """
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    flow = np.stack(np.meshgrid(axis, axis), axis=-1)
    inside = np.hypot(flow[..., 0], flow[..., 1]) <= 1
    return np.dstack([render_flow(flow, max_flow=1.0), np.uint8(255) * inside])


def side_by_side(frame: NDArray[np.uint8], flow: ArrayLike, max_flow: float = MAX_FLOW) -> NDArray[np.uint8]:
    """A frame (H, W, 3) and to its right its flow (H, W, 2) with a legend: RGB (H, 2 W, 3)."""
    panel = Image.fromarray(render_flow(flow, max_flow))
    size = min(panel.size) // 5
    if size >= 16:
        _draw_legend(panel, size, max_flow)
    return np.concatenate([frame, np.asarray(panel)], axis=1)


def _draw_legend(panel: Image.Image, size: int, max_flow: float) -> None:
    """The wheel in the lower right corner, and what its rim stands for."""
    margin = size // 5
    wheel = Image.fromarray(color_wheel(size))
    left, top = panel.width - size - margin, panel.height - size - margin
    panel.paste(wheel, (left, top), mask=wheel)
    draw = ImageDraw.Draw(panel)
    draw.ellipse((left - 1, top - 1, left + size, top + size), outline=(0, 0, 0))
    font = ImageFont.load_default(max(8, size // 5))
    draw.text((left + size / 2, top - 2), f"{max_flow:g} px", fill=(0, 0, 0), font=font, anchor="mb")
