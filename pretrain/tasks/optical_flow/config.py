"""The schema of a run that trains a Perceiver IO to estimate optical flow."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, ValidationInfo, field_validator

from perceiver_ar.models.perceiver_config import OpticalFlowConfig, presets_of
from pretrain.config import Count, ExampleRunConfig, Fraction
from pretrain.schema import FilePath, Location, Section
from pretrain.tasks.perceiver_io import PerceiverIORunConfig

PATCH_CHANNELS = 27
"""Of 3 x 3 pixels of 3 colours, which is what frames are made into."""

Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class ModelSection(OpticalFlowConfig):
    """An architecture, and the weights it starts with."""

    init_from: Location | None = None
    """An optical flow model to start from: a run, a checkpoint, an exported or converted folder, or a Hub name. What is
    left out of the architecture is that model's."""

    @property
    def architecture(self) -> OpticalFlowConfig:
        return OpticalFlowConfig(**{field.name: getattr(self, field.name) for field in fields(OpticalFlowConfig)})

    @property
    def frame_shape(self) -> tuple[int, int]:
        height, width = self.image_shape
        return height, width


class MotionSection(Section):
    """How far things move at most in generated scenes: each is drawn evenly between none and that much. The camera
    moves everything, and every blob moves by itself besides."""

    max_shift: NonNegativeFloat = 40.0
    """Pixels."""
    max_rotation: Annotated[float, Field(ge=0, le=180)] = 10.0
    """Degrees."""
    max_zoom: Annotated[float, Field(ge=1, le=4)] = 1.15
    """Times, in or out."""
    max_bend: NonNegativeFloat = 6.0
    """Pixels that smooth waves add to the rest of the motion."""
    max_blobs: Annotated[int, Field(ge=0, le=32)] = 4
    """Things in front of the background."""


class GeneratedPairs(Section):
    """Scenes made as training goes on: layers of pictures, each with its own motion, seen in two frames."""

    kind: Literal["generated"]
    pictures: FilePath | None = None
    """Folder that crops are taken from, with the folders in it; null draws coloured noise instead."""
    scenes: PositiveInt = 400_000
    """In an epoch. Each is an example: two pairs, the frames in their order and reversed."""
    motion: MotionSection = MotionSection()


class SintelPairs(Section):
    """MPI Sintel (http://sintel.is.tue.mpg.de)."""

    kind: Literal["sintel"]
    dir: FilePath
    """Holds `training/`."""
    passes: Annotated[tuple[Literal["clean", "final"], ...], Field(min_length=1)] = ("clean", "final")


class KittiPairs(Section):
    """KITTI 2015 (https://www.cvlibs.net/datasets/kitti): flow is known at some pixels."""

    kind: Literal["kitti"]
    dir: FilePath
    """Holds `training/`."""


class ChairsPairs(Section):
    """FlyingChairs (https://lmb.informatik.uni-freiburg.de), or whatever lies in a folder as it does."""

    kind: Literal["chairs"]
    dir: FilePath
    """Holds `NAME_img1`, `NAME_img2` (.ppm, .png or .jpg) and `NAME_flow.flo` of each pair."""


FolderPairs = SintelPairs | KittiPairs | ChairsPairs
Pairs = Annotated[GeneratedPairs | FolderPairs, Field(discriminator="kind")]


class DataSection(Section):
    train: Pairs
    validation: Pairs | None = None
    """Whole frames are scored, by tiles. null holds back a part of `train`."""
    held_out: Share = 0.05
    """That part: of the pictures that scenes are made of, of Sintel's films, or of the pairs."""
    threads: PositiveInt = 8
    """They read or generate the examples of a rank."""


class AugmentationSection(Section):
    """What training does to frames and flow, other than validation. All of it is off by default."""

    from_step: Count = 0
    """The first phase ends here: until then nothing is augmented. Without such a phase, the published model does not
    learn."""
    ramp_steps: Count = 0
    """Steps over which augmentation then grows to what the other fields say."""
    flip: bool = False
    """Mirror every other example left to right, and every other one upside down."""
    max_zoom: Annotated[float, Field(ge=1, le=4)] = 1.0
    """Enlarge up to so many times; frames larger than the model's are also reduced, as far as they go."""
    brightness: Fraction = 0.0
    """0.2 makes colours up to a fifth brighter or darker."""
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    difference: Fraction = 0.0
    """Part of these changes that each frame of a pair undergoes by itself."""
    noise: NonNegativeFloat = 0.0
    """Largest standard deviation, in levels of 0 to 255."""


class OpticalFlowRunConfig(ExampleRunConfig, PerceiverIORunConfig):
    architecture = OpticalFlowConfig
    presets = presets_of(OpticalFlowConfig)

    task: Literal["optical_flow"]
    model: ModelSection
    data: DataSection
    augmentation: AugmentationSection = AugmentationSection()

    @field_validator("model")
    @classmethod
    def _reads_patches(cls, value: ModelSection) -> ModelSection:
        if value.num_patch_channels != PATCH_CHANNELS:
            raise ValueError(f"num_patch_channels must be {PATCH_CHANNELS}, not {value.num_patch_channels}")
        return value

    @field_validator("data")
    @classmethod
    def _scores_whole_frames(cls, value: DataSection, info: ValidationInfo) -> DataSection:
        train = info.data.get("train")
        if train and train.zero.stage == 3 and not isinstance(value.validation or value.train, GeneratedPairs):
            # Ranks gather weights together: all would need frames of as many tiles.
            raise ValueError("frames of different sizes are not scored under train.zero.stage 3, take 0, 1 or 2")
        return value
