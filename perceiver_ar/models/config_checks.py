"""What is wrong with the values of a configuration, a line each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


def raise_problems(problems: Iterable[str]) -> None:
    """Raises ValueError with all of them in one line, if there are any."""
    if found := list(problems):
        raise ValueError("; ".join(found))


def too_small(config: Any, names: Iterable[str]) -> Iterator[str]:
    """Sizes below 1; None is no size."""
    for name in names:
        if (value := getattr(config, name)) is not None and value < 1:
            yield f"{name} ({value}) must be at least 1"


def fraction_problems(config: Any, names: Iterable[str]) -> Iterator[str]:
    """Fractions outside [0, 1)."""
    for name in names:
        if not 0 <= (value := getattr(config, name)) < 1:
            yield f"{name} ({value}) must be in [0, 1)"


def scale_problems(config: Any) -> Iterator[str]:
    """An `init_scale` that is not positive."""
    if not config.init_scale > 0:
        yield f"init_scale ({config.init_scale}) must be positive"


def head_problems(where: str, heads: int, qk_channels: int, v_channels: int | None) -> Iterator[str]:
    """Channels of `where` that cannot be divided among its heads; None is as many values as keys."""
    for name, channels in (("query and key", qk_channels), ("value", v_channels or qk_channels)):
        if channels < 1 or channels % heads:
            yield f"{where}: {channels} {name} channels cannot be divided among {heads} heads"
            return


def shape_problems(config: Any) -> Iterator[str]:
    """An `image_shape` or `max_resolution` with an empty axis, or of different numbers of axes."""
    shape, resolution = config.image_shape, config.max_resolution
    if not shape or min(shape) < 1:
        yield f"image_shape ({list(shape)}) must have a size of at least 1 on each axis"
    if resolution is not None and (len(resolution) != len(shape) or min(resolution, default=0) < 1):
        yield f"max_resolution ({list(resolution)}) must have a size of at least 1 for each of {len(shape)} axes"
