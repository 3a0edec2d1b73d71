"""The schema of a run that trains an image classifier."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, ValidationInfo, field_validator

from perceiver_ar.models.perceiver_config import ImageClassifierConfig, presets_of
from pretrain.config import ExampleRunConfig, Fraction
from pretrain.schema import Location, Section
from pretrain.tasks.labelled import LabelledDataSection, Name
from pretrain.tasks.perceiver_io import PerceiverIORunConfig

Channels = Annotated[tuple[float, ...], Field(min_length=1)]
"""One number for each channel, or one for them all."""
AreaFraction = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class ModelSection(ImageClassifierConfig):
    """An architecture, and the weights it starts with."""

    init_from: Location | None = None
    """An image classifier to start from: a run, a checkpoint, an exported or converted folder, or a Hub name. Of one
    for another number of classes, all but the output layer is taken. What is left out of the architecture is that
    model's."""

    @property
    def architecture(self) -> ImageClassifierConfig:
        return ImageClassifierConfig(**{f.name: getattr(self, f.name) for f in fields(ImageClassifierConfig)})


class DataSection(LabelledDataSection):
    """Labelled images: one of `folder` and `dataset` says where they are. Images of any size are cropped, resized to
    `model.image_shape` and converted to `model.num_image_channels`."""

    image_column: Name = "image"
    validation: Name = "validation"
    """Split to validate on."""

    crop_fraction: AreaFraction = 1.0
    """Of the sides of the largest rectangle of the model's shape in an image, what is read of it."""
    mean: Channels = (0.5,)
    """Of each channel, as a fraction of white."""
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (0.5,)
    threads: PositiveInt = 8
    """They decode and augment the images of a rank."""


class RandAugmentSection(Section):
    """RandAugment (https://arxiv.org/abs/1909.13719)."""

    operations: PositiveInt = 4
    """As many are drawn for each image, and follow each other."""
    magnitude: Annotated[float, Field(ge=0, le=10)] = 5


class AugmentationSection(Section):
    """What training does to images and labels, other than validation. All of it is off by default."""

    crop_area: tuple[AreaFraction, AreaFraction] | None = None
    """Read a random rectangle: the least and largest share of the image's area."""
    flip: bool = False
    """Mirror every other image, left to right."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Degrees at most, to either side."""
    zoom: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """0.1 makes an image up to a tenth larger or smaller, each axis by itself."""
    shear: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Sideways at most, as a fraction of the height."""
    translate: Fraction = 0.0
    """Fraction of the sides at most, along each axis."""
    rand_augment: RandAugmentSection | None = None
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Mix pairs of images and their labels (https://arxiv.org/abs/1710.09412), by a share drawn from Beta(a, a)."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """Likewise, but paste a rectangle (https://arxiv.org/abs/1905.04899). With both, each takes every other image."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @field_validator("crop_area")
    @classmethod
    def _ascends(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] > value[1]:
            raise ValueError(f"{list(value)} must be the least and the largest share, in this order")
        return value

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0


class ImageClassificationConfig(ExampleRunConfig, PerceiverIORunConfig):
    architecture = ImageClassifierConfig
    presets = presets_of(ImageClassifierConfig)

    task: Literal["image_classification"]
    model: ModelSection
    data: DataSection
    augmentation: AugmentationSection = AugmentationSection()

    @field_validator("model")
    @classmethod
    def _reads_images(cls, value: ModelSection) -> ModelSection:
        if len(value.image_shape) != 2:
            raise ValueError(f"image_shape must be height and width, not {list(value.image_shape)}")
        if value.num_image_channels not in (1, 3):
            raise ValueError(f"num_image_channels must be 1 (gray) or 3 (colour), not {value.num_image_channels}")
        return value

    @field_validator("data")
    @classmethod
    def _has_numbers_of_channels(cls, value: DataSection, info: ValidationInfo) -> DataSection:
        model = info.data.get("model")
        for name, numbers in (("mean", value.mean), ("std", value.std)):
            if model and len(numbers) not in (1, model.num_image_channels):
                wanted = " or ".join(map(str, sorted({1, model.num_image_channels})))
                raise ValueError(f"{name} must have {wanted} numbers, as the model reads channels, not {len(numbers)}")
        return value

    @field_validator("augmentation")
    @classmethod
    def _mixes_pairs(cls, value: AugmentationSection, info: ValidationInfo) -> AugmentationSection:
        train = info.data.get("train")
        if train and value.mixes and train.micro_batch % 2:
            raise ValueError(f"mixup and cutmix mix pairs: train.micro_batch must be even, not {train.micro_batch}")
        return value
