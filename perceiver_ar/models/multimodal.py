"""Perceiver IO that autoencodes clips of video, sound and a class (https://arxiv.org/abs/2107.14795, section 4.3)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from perceiver_ar.blocks.linear import Linear
from perceiver_ar.blocks.positions import fourier_features, grid_positions
from perceiver_ar.models.multimodal_config import MODALITIES, VIDEO_CHANNELS, MultimodalConfig
from perceiver_ar.models.perceiver import PerceiverEncoder
from perceiver_ar.models.perceiver_io import PerceiverDecoder, PerceiverModel

UNKNOWN_CLASS = -1
"""The label of a clip that has none: it is hidden."""


class Decoded(NamedTuple):
    """What the model makes of chosen points of a clip."""

    video: Tensor
    """Pixels (batch, points, 3)."""
    audio: Tensor
    """Patches of sound (batch, points, audio_patch)."""
    label: Tensor
    """Logits (batch, num_classes)."""


class Reconstruction(NamedTuple):
    """What the model makes of a clip."""

    video: Tensor
    """(batch, frames, 3, height, width)."""
    audio: Tensor
    """(batch, samples)."""
    label: Tensor
    """Logits (batch, num_classes)."""


class InputModality(nn.Module):
    """Elements of one modality, filled up to the width of all inputs; or the mask token, where they are hidden."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.padding = nn.Parameter(torch.empty(1, width - channels))
        self.mask_token = nn.Parameter(torch.empty(1, width))

    def forward(self, elements: Tensor | None, size: tuple[int, int], hidden: Tensor | None) -> Tensor:
        """(batch, n, channels), which is `size`, and (batch,) bool -> (batch, n, width). None is hidden everywhere."""
        token = self.mask_token.expand(*size, -1)
        if elements is None:
            return token
        filled = torch.cat((elements.to(token.dtype), self.padding.expand(*size, -1)), dim=-1)
        return filled if hidden is None else torch.where(hidden[:, None, None], token, filled)


class MultimodalInputs(nn.Module):
    """Clips -> what the encoder reads: patches of video, patches of sound, the class."""

    def __init__(self, config: MultimodalConfig) -> None:
        super().__init__()
        self.config = config
        width, channels = config.input_channels, config.element_channels
        self.video = InputModality(channels["video"], width)
        self.audio = InputModality(channels["audio"], width)
        self.label = InputModality(channels["label"], width)

    def forward(
        self, video: Tensor | None, audio: Tensor | None, label: Tensor | None, hidden: Tensor | None
    ) -> Tensor:
        """As `MultimodalAutoencoder.encode` -> (batch, M, input_channels)."""
        config = self.config
        batch = next(len(given) for given in (video, audio, label) if given is not None)
        hidden_video, hidden_audio, hidden_label = (None,) * 3 if hidden is None else hidden.unbind(dim=1)
        if label is not None:
            unknown = label == UNKNOWN_CLASS
            hidden_label = unknown if hidden_label is None else unknown | hidden_label
        parts = (
            self.video(self._video(video), (batch, math.prod(config.video_grid)), hidden_video),
            self.audio(self._audio(audio), (batch, config.num_audio_patches), hidden_audio),
            self.label(self._label(label), (batch, 1), hidden_label),
        )
        return torch.cat(parts, dim=1)

    def _video(self, video: Tensor | None) -> Tensor | None:
        if video is None:
            return None
        frames, height, width = self.config.video_patch
        patches = rearrange(video, "b (t pt) c (h ph) (w pw) -> b (t h w) (pt ph pw c)", pt=frames, ph=height, pw=width)
        positions = grid_positions(self.config.video_grid, device=video.device)
        features = fourier_features(positions, self.config.video_frequency_bands, self.config.video_resolution)
        return torch.cat((patches, features.expand(len(patches), -1, -1)), dim=-1)

    def _audio(self, audio: Tensor | None) -> Tensor | None:
        if audio is None:
            return None
        patches = audio.unflatten(1, (-1, self.config.audio_patch))
        positions = grid_positions((self.config.num_audio_patches,), device=audio.device)
        features = fourier_features(positions, self.config.audio_frequency_bands, self.config.audio_resolution)
        return torch.cat((patches, features.expand(len(patches), -1, -1)), dim=-1)

    def _label(self, label: Tensor | None) -> Tensor | None:
        return None if label is None else F.one_hot(label.clamp(min=0), self.config.num_classes)[:, None]


class QueryModality(nn.Module):
    """Queries of one modality, filled up to the width of all queries."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.padding = nn.Parameter(torch.empty(1, width - channels))

    def forward(self, positions: Tensor) -> Tensor:
        """(batch, n, channels) -> (batch, n, width)."""
        padding = self.padding.expand(*positions.shape[:2], -1)
        return torch.cat((positions.to(padding.dtype), padding), dim=-1)


class MultimodalQueries(nn.Module):
    """Chosen pixels, chosen patches of sound and the class -> what the decoder is asked.

    The place of element i of n on an axis is ``-1 + 2 i / n``, where inputs have it at ``-1 + 2 i / (n - 1)``: that is
    what the published model was trained with.
    """

    def __init__(self, config: MultimodalConfig) -> None:
        super().__init__()
        self.config = config
        width, channels = config.query_channels, config.position_channels
        self.video = QueryModality(channels["video"], width)
        self.audio = QueryModality(channels["audio"], width)
        self.label = QueryModality(channels["label"], width)
        self.class_query = nn.Parameter(torch.empty(1, config.num_label_query_channels))

    def forward(self, video_points: Tensor, audio_points: Tensor) -> Tensor:
        """(batch, P) and (batch, Q) int64 -> (batch, P + Q + 1, query_channels)."""
        config = self.config
        pixels = _place(video_points, config.video_shape)
        patches = _place(audio_points, (config.num_audio_patches,))
        parts = (
            self.video(_features(pixels, config.video_frequency_bands, config.video_resolution)),
            self.audio(_features(patches, config.audio_frequency_bands, config.audio_resolution)),
            self.label(self.class_query.expand(len(video_points), 1, -1)),
        )
        return torch.cat(parts, dim=1)


def _place(points: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Numbers of elements of an array, row-major (batch, n) -> (batch, n, axes) in [-1, 1)."""
    coordinates = torch.stack(torch.unravel_index(points, shape), dim=-1)
    return -1 + 2 * coordinates / torch.tensor(shape, device=points.device)


def _features(positions: Tensor, bands: int, resolution: tuple[int, ...]) -> Tensor:
    return fourier_features(positions.flatten(0, 1), bands, resolution).unflatten(0, positions.shape[:2])


class MultimodalAutoencoder(PerceiverModel):
    """Clips through a bottleneck of latents and back. With the class hidden it is a classifier of videos."""

    decoder: PerceiverDecoder

    def __init__(self, config: MultimodalConfig) -> None:
        super().__init__(config)
        self.input_adapter = MultimodalInputs(config)
        self.encoder = PerceiverEncoder(config.encoder, config.input_channels)
        self.queries = MultimodalQueries(config)
        self.decoder = PerceiverDecoder(config.decoder, config.query_channels, config.encoder.latent_channels)
        self.output = Linear(config.query_channels, config.num_output_channels)
        self.video_output = Linear(config.num_output_channels, VIDEO_CHANNELS)
        self.audio_output = Linear(config.num_output_channels, config.audio_patch)
        self.label_output = Linear(config.num_output_channels, config.num_classes)
        self.apply(self.initialize)

    def forward(
        self,
        video: Tensor | None,
        audio: Tensor | None,
        label: Tensor | None,
        video_points: Tensor,
        audio_points: Tensor,
        hidden: Tensor | None = None,
    ) -> Decoded:
        """Encode clips and decode chosen points of them, see `encode` and `decode`."""
        return self.decode(self.encode(video, audio, label, hidden), video_points, audio_points)

    def encode(
        self,
        video: Tensor | None = None,
        audio: Tensor | None = None,
        label: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Clips -> latents (batch, num_latents, latent_channels).

        `video` (batch, frames, 3, height, width), `audio` (batch, samples), `label` (batch,) int64, at least one of
        which must be given: what is None is hidden from the model, as is a label of -1. `hidden` (batch, 3) bool hides
        video, audio and label of single clips.

        Raises ValueError for clips of another shape.
        """
        frames, height, width = self.config.video_shape
        shapes = ((frames, VIDEO_CHANNELS, height, width), (self.config.num_audio_samples,), ())
        for name, given, shape in zip(MODALITIES, (video, audio, label), shapes, strict=True):
            if given is not None and given.shape[1:] != shape:
                raise ValueError(f"{name}: must be clips of shape {list(shape)}, not {list(given.shape[1:])}")
        return self.encoder(self.input_adapter(video, audio, label, hidden))

    def decode(self, latents: Tensor, video_points: Tensor, audio_points: Tensor) -> Decoded:
        """Chosen pixels and patches of sound, and the class.

        `video_points` (batch, P) int64 count the pixels of a clip by frame, row and column, `audio_points` (batch, Q)
        its patches of sound. Memory follows from P + Q.
        """
        hidden = self.output(self.decoder(latents, self.queries(video_points, audio_points)))
        video, audio, label = hidden.split((video_points.shape[1], audio_points.shape[1], 1), dim=1)
        return Decoded(self.video_output(video), self.audio_output(audio), self.label_output(label[:, 0]))

    def reconstruct(self, latents: Tensor, points_at_a_time: int = 8192) -> Reconstruction:
        """Whole clips, decoded in parts of so many points: memory stays bounded."""
        config = self.config
        parts = math.ceil((config.num_pixels + config.num_audio_patches) / points_at_a_time)
        video, audio = (
            torch.arange(count, device=latents.device).expand(len(latents), -1).tensor_split(parts, dim=1)
            for count in (config.num_pixels, config.num_audio_patches)
        )
        decoded = [self.decode(latents, *points) for points in zip(video, audio, strict=True)]
        frames, height, width = config.video_shape
        pixels = torch.cat([part.video for part in decoded], dim=1)
        return Reconstruction(
            rearrange(pixels, "b (t h w) c -> b t c h w", t=frames, h=height, w=width),
            torch.cat([part.audio for part in decoded], dim=1).flatten(1),
            decoded[-1].label,
        )
