"""How a source's image processor prepares images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perceiver_ar.hub import read_json
from perceiver_ar.models.perceiver_config import ImageClassifierConfig

FILE = "preprocessor_config.json"
IMAGENET = dict(image_mean=(0.485, 0.456, 0.406), image_std=(0.229, 0.224, 0.225))


def processor_size(folder: Path) -> tuple[int, int] | None:
    """Height and width that the image processor of `folder` makes, or None where there is none.

    Raises ValueError where its file is damaged.
    """
    return _size(read_json(folder / FILE).get("size")) if has_image_processor(folder) else None


def _size(value: Any) -> tuple[int, int] | None:
    """Earlier versions have one number."""
    height, width = (value.get("height"), value.get("width")) if isinstance(value, Mapping) else (value, value)
    return (height, width) if isinstance(height, int) and isinstance(width, int) and height * width else None


def has_image_processor(folder: Path | None) -> bool:
    return folder is not None and (folder / FILE).is_file()


def image_arguments(folder: Path | None, config: ImageClassifierConfig) -> dict[str, Any]:
    """The arguments of our image processor.

    Where the source does not tell them, colours get ImageNet's mean and deviation, and grays go from -1 to 1, as in the
    data modules of perceiver-io.

    Raises ValueError where its file is damaged.
    """
    channels = config.num_image_channels
    arguments: dict[str, Any] = dict(image_shape=list(config.image_shape), num_channels=channels)
    if folder is None or not has_image_processor(folder):
        means = IMAGENET if channels == 3 else dict(image_mean=(0.5,) * channels, image_std=(0.5,) * channels)
        return arguments | means | dict(crop_fraction=0.875 if channels == 3 else 1.0)
    theirs = read_json(folder / FILE)
    for name in IMAGENET:
        values = theirs.get(name, 0)
        if not all(isinstance(value, int | float) for value in (values if isinstance(values, list) else [values])):
            raise ValueError(f"{folder / FILE}: {name} must be numbers, not {values!r}")
    if "crop_fraction" in theirs:  # it is ours
        return arguments | {name: theirs[name] for name in ("crop_fraction", *IMAGENET) if name in theirs}
    size, crop = _size(theirs.get("size", 224)), _size(theirs.get("crop_size", 256))
    crops = theirs.get("do_center_crop", True) and size is not None and crop is not None
    arguments["crop_fraction"] = size[0] / crop[0] if crops else 1.0  # type: ignore[index]
    normalizes = theirs.get("do_normalize", True)
    for name, default, nothing in (
        ("image_mean", IMAGENET["image_mean"], 0.0),
        ("image_std", IMAGENET["image_std"], 1.0),
    ):
        value = theirs.get(name, default) if normalizes else nothing
        arguments[name] = list(value) if isinstance(value, list | tuple) else [value] * channels
    return arguments


def transformers_arguments(ours: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of its `PerceiverImageProcessor` that prepare square images as ours with these arguments does."""
    height, width = ours["image_shape"]
    crop = {name: round(side / ours["crop_fraction"]) for name, side in (("height", height), ("width", width))}
    return dict(
        size=dict(height=height, width=width),
        crop_size=crop,
        image_mean=list(ours["image_mean"]),
        image_std=list(ours["image_std"]),
    )
