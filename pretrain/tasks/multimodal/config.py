"""The schema of a run that trains an autoencoder of clips: video, sound and a class."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, ValidationInfo, field_validator, model_validator

from perceiver_ar.models.multimodal_config import MULTIMODAL_PRESETS, MultimodalConfig
from perceiver_ar.processors.clips import ClipShape
from pretrain.config import ExampleRunConfig, Fraction
from pretrain.schema import FilePath, Location, Section
from pretrain.tasks.perceiver_io import PerceiverIORunConfig

Name = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class ModelSection(MultimodalConfig):
    """An architecture, and the weights it starts with."""

    init_from: Location | None = None
    """A multimodal autoencoder to start from: a run, a checkpoint, an exported or converted folder, or a Hub name."""

    @property
    def architecture(self) -> MultimodalConfig:
        return MultimodalConfig(**{field.name: getattr(self, field.name) for field in fields(MultimodalConfig)})


class SyntheticSection(Section):
    """Clips drawn as they are read: shapes that move and sound, each class in its own way."""

    clips: PositiveInt = 10_000
    validation_clips: PositiveInt = 256


class DataSection(Section):
    """Exactly one of `folder` and `synthetic` says what is trained on."""

    folder: FilePath | None = None
    """Holds a folder for each split with videos, which lie in a folder for each class (`train/juggling/17.mp4`) or all
    together: then no clip has a class. An epoch takes one clip of each video, at a random place."""
    train: Name = "train"
    """Split to train on."""
    validation: Name = "validation"
    """Its clips are those from the middle of each video."""
    synthetic: SyntheticSection | None = None
    frames_per_second: Annotated[float, Field(gt=0)] = 25.0
    """Of the model's clips, whatever the videos have; the sample rate of their sound follows."""
    threads: PositiveInt = 8
    """They decode the videos of a rank."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.folder is None) == (self.synthetic is None):
            raise ValueError("give exactly one of data.folder and data.synthetic")
        return self


class MaskingSection(Section):
    """Share of the training clips of which a modality is hidden from the model. It has to make it up all the same."""

    video: Fraction = 0.0
    audio: Fraction = 0.0
    label: Fraction = 0.5
    """In validation it is always hidden: the model has to tell the class."""

    @model_validator(mode="after")
    def _shows_something(self) -> Self:
        if self.video + self.audio > 1:
            raise ValueError(
                f"video ({self.video}) and audio ({self.audio}) must add up to at most 1: never are both hidden"
            )
        return self


class LossSection(Section):
    """What a clip's loss is the sum of: the paper's errors and weights by default."""

    error: Literal["absolute", "squared"] = "absolute"
    """Of pixels and samples. What covers less than half of a picture leaves the best absolute error as it is, until a
    model knows where it is: small models, and clips with small things in them, learn from squared errors."""
    video: NonNegativeFloat = 0.03
    """Weight of the mean error of pixels, which are between 0 and 1."""
    audio: NonNegativeFloat = 1.0
    """Weight of the mean error of samples, which are between -1 and 1."""
    label: NonNegativeFloat = 1e-4
    """Weight of the cross-entropy of the class."""
    pixels: PositiveInt = 512
    """Drawn from each training clip: only they are decoded. Validation decodes clips as wholes."""
    audio_patches: PositiveInt = 32
    """Likewise."""


class MultimodalRunConfig(ExampleRunConfig, PerceiverIORunConfig):
    architecture = MultimodalConfig
    presets = MULTIMODAL_PRESETS

    task: Literal["multimodal"]
    model: ModelSection
    data: DataSection
    masking: MaskingSection = MaskingSection()
    loss: LossSection = LossSection()

    @field_validator("data")
    @classmethod
    def _has_a_sample_rate(cls, value: DataSection, info: ValidationInfo) -> DataSection:
        model = info.data.get("model")
        if model is None:
            return value
        rate = model.num_audio_samples * value.frames_per_second / model.video_shape[0]
        if rate != round(rate):
            raise ValueError(
                f"frames_per_second ({value.frames_per_second:g}) makes a sample rate of {rate:g} Hz, with "
                f"{model.num_audio_samples} samples in {model.video_shape[0]} frames: it must be a whole number"
            )
        return value

    @property
    def clip_shape(self) -> ClipShape:
        """Of the clips that the model reads."""
        return ClipShape(*self.model.video_shape, self.model.num_audio_samples, self.data.frames_per_second)
