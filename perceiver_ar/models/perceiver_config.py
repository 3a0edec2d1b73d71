"""What Perceiver and Perceiver IO models are made of. Sizes are in elements, channels or layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar, Literal

from perceiver_ar.models.config_checks import raise_problems, shape_problems, too_small
from perceiver_ar.models.perceiver_parts import DecoderConfig, EncoderConfig

__all__ = [
    "PERCEIVER_PRESETS",
    "DecoderConfig",
    "EncoderConfig",
    "ImageClassifierConfig",
    "MaskedLMConfig",
    "OpticalFlowConfig",
    "TextClassifierConfig",
    "fourier_channels",
    "presets_of",
]


def fourier_channels(num_axes: int, num_frequency_bands: int) -> int:
    """Channels of Fourier features: a sine and a cosine of each frequency on each axis, and the raw positions."""
    return num_axes * (2 * num_frequency_bands + 1)


@dataclass(frozen=True, kw_only=True)
class MaskedLMConfig:
    """A masked language model: token and position embeddings in, one learned query for each position."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    vocab_size: int
    max_seq_len: int = 2048
    num_input_channels: int = 768
    """Width of the token and position embeddings."""
    num_query_channels: int | None = None
    """Width of the output queries; ``None`` is `num_input_channels`. Another width needs `tied_output: false`."""
    tied_output: bool = True
    """The output projection is the token embedding's matrix."""
    encoder: EncoderConfig = field(default=EncoderConfig())
    decoder: DecoderConfig = field(default=DecoderConfig(cross_attention_residual=False))

    def __post_init__(self) -> None:
        raise_problems(self._problems())

    def _problems(self) -> Iterator[str]:
        yield from too_small(self, ("vocab_size", "max_seq_len", "num_input_channels", "num_query_channels"))
        yield from self.encoder.problems_with_inputs(self.num_input_channels)
        yield from self.decoder.problems_with(self.query_channels, self.encoder.latent_channels)
        if self.query_channels != self.num_input_channels and self.tied_output:
            yield "num_query_channels other than num_input_channels needs tied_output: false"

    @property
    def query_channels(self) -> int:
        return self.num_query_channels or self.num_input_channels


@dataclass(frozen=True, kw_only=True)
class TextClassifierConfig:
    """A classifier of texts: token and position embeddings in, one learned query out."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    vocab_size: int
    max_seq_len: int = 2048
    num_input_channels: int = 768
    """Width of the token and position embeddings."""
    num_classes: int
    num_query_channels: int | None = None
    """Width of the output query; ``None`` is the channels of the latents."""
    encoder: EncoderConfig = field(default=EncoderConfig())
    decoder: DecoderConfig = field(default=DecoderConfig())

    def __post_init__(self) -> None:
        raise_problems(self._problems())

    def _problems(self) -> Iterator[str]:
        sizes = ("vocab_size", "max_seq_len", "num_input_channels", "num_classes", "num_query_channels")
        yield from too_small(self, sizes)
        yield from self.encoder.problems_with_inputs(self.num_input_channels)
        yield from self.decoder.problems_with(self.query_channels, self.encoder.latent_channels)

    @property
    def query_channels(self) -> int:
        return self.num_query_channels or self.encoder.latent_channels


@dataclass(frozen=True, kw_only=True)
class ImageClassifierConfig:
    """A classifier of images, or of arrays with any number of axes."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    image_shape: tuple[int, ...] = (224, 224)
    """Size of each axis: (height, width) of an image, one number of a sequence, three of a volume."""
    num_image_channels: int = 3
    num_classes: int = 1000

    inputs: Literal["fourier", "learned", "conv"] = "fourier"
    """What the encoder reads: pixels with Fourier features of their positions; projected pixels with learned positions;
    the output of a convolution that makes each side a quarter, with Fourier features."""
    num_frequency_bands: int = 64
    """Frequencies on each axis, of inputs with Fourier features."""
    max_resolution: tuple[int, ...] | None = None
    """Size of each axis whose Nyquist frequency is the highest; ``None`` is that of the encoded array."""
    num_feature_channels: int = 64
    """Channels of projected pixels (``learned``) and of the convolution (``conv``)."""
    num_position_channels: int = 256
    """Channels of ``learned`` positions."""

    encoder: EncoderConfig = field(default=EncoderConfig())
    decoder: DecoderConfig | None = field(default=DecoderConfig())
    """``None`` takes the mean of the latents, as the first Perceiver does, instead of a learned query."""
    num_query_channels: int | None = None
    """Width of the output query; ``None`` is the channels of the latents."""
    pooling_norm: bool = False
    """Normalise the mean of the latents; needs `decoder: null`."""

    def __post_init__(self) -> None:
        raise_problems(self._problems())

    def _problems(self) -> Iterator[str]:
        sizes = ["num_image_channels", "num_classes", "num_frequency_bands", "num_feature_channels"]
        sizes += ["num_position_channels", "num_query_channels"]
        yield from too_small(self, sizes)
        if misshapen := list(shape_problems(self)):
            yield from misshapen
            return
        if self.inputs == "conv" and len(self.image_shape) != 2:
            yield f"inputs: conv needs an image_shape of height and width, not {list(self.image_shape)}"
        elif min(self.feature_shape) < 1:
            yield f"inputs: conv needs sides of at least 5 pixels, not image_shape {list(self.image_shape)}"
        if self.pooling_norm and self.decoder is not None:
            yield "pooling_norm needs decoder: null"
        if self.num_query_channels is not None and self.decoder is None:
            yield "num_query_channels needs a decoder"
        yield from self.encoder.problems_with_inputs(self.input_channels)
        if self.decoder is not None:
            yield from self.decoder.problems_with(self.query_channels, self.encoder.latent_channels)

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Size of each axis of the array that the encoder reads: a convolution and a pooling each halve a side."""
        if self.inputs != "conv":
            return self.image_shape
        return tuple(((side + 1) // 2 - 1) // 2 for side in self.image_shape)

    @property
    def num_elements(self) -> int:
        """Elements that the encoder reads."""
        return prod(self.feature_shape)

    @property
    def resolution(self) -> tuple[int, ...]:
        return self.max_resolution or self.feature_shape

    @property
    def input_channels(self) -> int:
        """Channels of the elements that the encoder reads."""
        if self.inputs == "learned":
            return self.num_feature_channels + self.num_position_channels
        features = self.num_image_channels if self.inputs == "fourier" else self.num_feature_channels
        return features + fourier_channels(len(self.image_shape), self.num_frequency_bands)

    @property
    def query_channels(self) -> int:
        return self.num_query_channels or self.encoder.latent_channels


@dataclass(frozen=True, kw_only=True)
class OpticalFlowConfig:
    """Optical flow between two frames: a patch of both around each pixel in, the pixel's motion out."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    image_shape: tuple[int, ...] = (368, 496)
    """Height and width of the frames."""
    num_patch_channels: int = 27
    """Channels of the patch around a pixel of one frame: 3 x 3 pixels of 3 colours."""
    num_feature_channels: int = 64
    """Channels that the patches of both frames are projected to."""
    num_frequency_bands: int = 64
    max_resolution: tuple[int, ...] | None = None
    """Size of each axis whose Nyquist frequency is the highest; ``None`` is `image_shape`."""
    rescale_factor: float = 100.0
    """What the output projection is divided by."""
    encoder: EncoderConfig = field(default=EncoderConfig())
    decoder: DecoderConfig = field(default=DecoderConfig(cross_attention_residual=False))

    def __post_init__(self) -> None:
        raise_problems(self._problems())

    def _problems(self) -> Iterator[str]:
        yield from too_small(self, ("num_patch_channels", "num_feature_channels", "num_frequency_bands"))
        if len(self.image_shape) != 2:
            yield f"image_shape ({list(self.image_shape)}) must be height and width"
        if self.rescale_factor <= 0:
            yield f"rescale_factor ({self.rescale_factor}) must be positive"
        yield from shape_problems(self)
        yield from self.encoder.problems_with_inputs(self.input_channels)
        yield from self.decoder.problems_with(self.input_channels, self.encoder.latent_channels)

    @property
    def resolution(self) -> tuple[int, ...]:
        return self.max_resolution or self.image_shape

    @property
    def input_channels(self) -> int:
        """Channels of the elements that the encoder reads, which are the output queries too."""
        return self.num_feature_channels + fourier_channels(2, self.num_frequency_bands)


_MLM = dict(
    encoder=dict(
        num_latents=256,
        latent_channels=1280,
        cross_attention_heads=8,
        cross_attention_qk_channels=256,
        cross_attention_v_channels=1280,
        self_attention_qk_channels=256,
        self_attention_v_channels=1280,
        num_blocks=1,
        layers_per_block=26,
    ),
    decoder=dict(cross_attention_heads=8, qk_channels=256, v_channels=768, cross_attention_residual=False),
)

PERCEIVER_PRESETS: dict[str, tuple[type, dict[str, Any]]] = {
    "perceiver-imagenet": (ImageClassifierConfig, dict(encoder=dict(num_cross_attentions=8), decoder=None)),
    "perceiver-io-imagenet-fourier": (ImageClassifierConfig, {}),
    "perceiver-io-imagenet-learned": (ImageClassifierConfig, dict(inputs="learned", num_feature_channels=256)),
    "perceiver-io-imagenet-conv": (ImageClassifierConfig, dict(inputs="conv", max_resolution=(56, 56))),
    "perceiver-io-mnist": (
        ImageClassifierConfig,
        dict(
            image_shape=(28, 28),
            num_image_channels=1,
            num_classes=10,
            num_frequency_bands=32,
            encoder=dict(
                num_latents=32,
                latent_channels=128,
                num_cross_attentions=2,
                num_blocks=3,
                layers_per_block=3,
                self_attention_sharing="except_first",
                attention_dropout=0.1,
                init_scale=0.1,
            ),
            decoder=dict(attention_dropout=0.1, init_scale=0.1),
        ),
    ),
    "perceiver-io-mlm-bytes": (MaskedLMConfig, dict(vocab_size=262, max_seq_len=2048, **_MLM)),
    "perceiver-io-mlm-sentencepiece": (MaskedLMConfig, dict(vocab_size=32_000, max_seq_len=512, **_MLM)),
    "perceiver-io-flow": (
        OpticalFlowConfig,
        dict(
            encoder=dict(
                num_latents=2048, latent_channels=512, self_attention_heads=16, num_blocks=1, layers_per_block=24
            ),
            decoder=dict(cross_attention_residual=False),
        ),
    ),
}
"""The papers' models and krasserm/perceiver-io's for MNIST: the class of the configuration, and its values, nested."""


def presets_of(config_class: type) -> dict[str, dict[str, Any]]:
    """Those of `PERCEIVER_PRESETS` that are values of `config_class`, by name."""
    return {name: values for name, (made_for, values) in PERCEIVER_PRESETS.items() if made_for is config_class}
