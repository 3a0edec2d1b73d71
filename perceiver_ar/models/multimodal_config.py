"""What a multimodal autoencoder is made of. Sizes are in elements, channels or layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, ClassVar

from perceiver_ar.models.config_checks import raise_problems, too_small
from perceiver_ar.models.perceiver_config import DecoderConfig, EncoderConfig, fourier_channels

VIDEO_CHANNELS = 3
MODALITIES = ("video", "audio", "label")


_ENCODER = EncoderConfig(num_latents=784, latent_channels=512, num_blocks=1, layers_per_block=8)
_DECODER = DecoderConfig(cross_attention_residual=False)
_SIZES = (
    "video_frequency_bands",
    "num_audio_samples",
    "audio_patch",
    "audio_frequency_bands",
    "audio_max_resolution",
    "num_classes",
    "num_label_query_channels",
    "input_padding",
    "query_padding",
    "num_output_channels",
)


@dataclass(frozen=True, kw_only=True)
class MultimodalConfig:
    """An autoencoder of clips: video, the sound that belongs to it, and the clip's class.

    Patches of video and sound are read with Fourier features of their positions, the class as a one-hot vector. A
    learned embedding of its modality fills each element up to the width that all have in common. Queries are made in
    the same way: one for each pixel, one for each patch of sound, one for the class.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    video_shape: tuple[int, int, int] = (16, 224, 224)
    """Frames, height, width."""
    video_patch: tuple[int, int, int] = (1, 4, 4)
    """Frames, height and width of the patches that the encoder reads."""
    video_frequency_bands: int = 32
    """Frequencies on each axis."""
    video_max_resolution: tuple[int, int, int] | None = None
    """Size of each axis whose Nyquist frequency is the highest; ``None`` is the number of patches."""

    num_audio_samples: int = 30_720
    """Of sound, during all frames."""
    audio_patch: int = 16
    """Samples of the patches that the encoder reads and the decoder makes."""
    audio_frequency_bands: int = 192
    audio_max_resolution: int | None = None
    """Length whose Nyquist frequency is the highest; ``None`` is `num_audio_samples`, as published."""

    num_classes: int = 700
    num_label_query_channels: int = 1024
    """Width of the learned query of the class."""

    input_padding: int = 4
    """Fewest channels of a modality's embedding in the inputs."""
    query_padding: int = 2
    """Fewest channels of a modality's embedding in the queries."""
    num_output_channels: int = 512
    """What decoded queries are projected to before each modality's own projection."""

    encoder: EncoderConfig = _ENCODER
    decoder: DecoderConfig = _DECODER

    def __post_init__(self) -> None:
        raise_problems(self._problems())

    def _problems(self) -> Iterator[str]:
        sizes = list(too_small(self, _SIZES))
        for name in ("video_shape", "video_patch", "video_max_resolution"):
            if (shape := getattr(self, name)) is not None and min(shape) < 1:
                sizes.append(f"{name} ({list(shape)}) must have a size of at least 1 on each axis")
        if sizes:
            yield from sizes
            return
        if any(size % patch for size, patch in zip(self.video_shape, self.video_patch, strict=True)):
            yield f"video_shape ({list(self.video_shape)}) must divide into patches of {list(self.video_patch)}"
        if self.num_audio_samples % self.audio_patch:
            yield f"num_audio_samples ({self.num_audio_samples}) must divide into patches of {self.audio_patch}"
        yield from self.encoder.problems_with_inputs(self.input_channels)
        yield from self.decoder.problems_with(self.query_channels, self.encoder.latent_channels)

    @property
    def video_grid(self) -> tuple[int, ...]:
        """Patches on each axis."""
        return tuple(size // patch for size, patch in zip(self.video_shape, self.video_patch, strict=True))

    @property
    def video_resolution(self) -> tuple[int, ...]:
        return self.video_max_resolution or self.video_grid

    @property
    def num_audio_patches(self) -> int:
        return self.num_audio_samples // self.audio_patch

    @property
    def audio_resolution(self) -> tuple[int, ...]:
        return (self.audio_max_resolution or self.num_audio_samples,)

    @property
    def num_pixels(self) -> int:
        """Of all frames: what the video has queries for."""
        return prod(self.video_shape)

    @property
    def element_channels(self) -> dict[str, int]:
        """Of each modality's inputs, before they are filled up."""
        positions = self._position_channels
        return {
            "video": VIDEO_CHANNELS * prod(self.video_patch) + positions["video"],
            "audio": self.audio_patch + positions["audio"],
            "label": self.num_classes,
        }

    @property
    def position_channels(self) -> dict[str, int]:
        """Of each modality's queries, before they are filled up."""
        return {**self._position_channels, "label": self.num_label_query_channels}

    @property
    def _position_channels(self) -> dict[str, int]:
        return {
            "video": fourier_channels(3, self.video_frequency_bands),
            "audio": fourier_channels(1, self.audio_frequency_bands),
        }

    @property
    def input_channels(self) -> int:
        return max(self.element_channels.values()) + self.input_padding

    @property
    def query_channels(self) -> int:
        return max(self.position_channels.values()) + self.query_padding


MULTIMODAL_PRESETS: dict[str, dict[str, Any]] = {
    "perceiver-io-multimodal": dict(encoder=asdict(_ENCODER), decoder=asdict(_DECODER))
}
"""The paper's largest model of Kinetics-700, as transformers' PerceiverForMultimodalAutoencoding has it."""
