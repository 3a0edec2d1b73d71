"""Perceiver and Perceiver IO for images: classifiers with three kinds of inputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceiver_ar.blocks.layers import make_norm
from perceiver_ar.blocks.linear import Linear
from perceiver_ar.blocks.positions import fourier_features, grid_positions
from perceiver_ar.models.perceiver import PerceiverEncoder
from perceiver_ar.models.perceiver_config import ImageClassifierConfig
from perceiver_ar.models.perceiver_io import PerceiverDecoder, PerceiverModel


class FourierInput(nn.Module):
    """Pixels, or the features that a convolution makes of them, with Fourier features of their positions.

    (batch, channels, *image_shape) -> (batch, elements, input channels)
    """

    def __init__(self, config: ImageClassifierConfig) -> None:
        super().__init__()
        self.num_bands = config.num_frequency_bands
        self.resolution = config.resolution
        self.conv = (
            Downsampling(config.num_image_channels, config.num_feature_channels)
            if config.inputs == "conv"
            else nn.Identity()
        )

    def forward(self, images: Tensor) -> Tensor:
        return with_fourier_features(self.conv(images), self.num_bands, self.resolution)


class Downsampling(nn.Module):
    """A 7x7 convolution and a 3x3 maximum, both with stride 2: (batch, channels, H, W) -> about a quarter of each side.

    The convolution is padded on all sides, the maximum is not: 224 x 224 pixels become 55 x 55 elements.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=7, stride=2, padding=3, bias=False)
        self.norm = BatchNorm(out_channels)

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.conv(images))
        return F.max_pool2d(features.relu(), kernel_size=3, stride=2)


class BatchNorm(nn.Module):
    """`torch.nn.BatchNorm2d` (https://arxiv.org/abs/1502.03167) in fp32, whatever the weights are in.

    Where weights are in bf16 statistics may stay in fp32, and torch's own takes no mixture of both.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, features: Tensor) -> Tensor:
        mean, variance = (moving.to(torch.float32, copy=True) for moving in (self.running_mean, self.running_var))
        weights = self.weight.float(), self.bias.float()
        normed = F.batch_norm(features.float(), mean, variance, *weights, training=self.training)
        if self.training:
            self.running_mean.copy_(mean)
            self.running_var.copy_(variance)
        return normed.to(features.dtype)


class LearnedInput(nn.Module):
    """Projected pixels with learned positions: (batch, channels, *image_shape) -> (batch, elements, input channels)."""

    def __init__(self, config: ImageClassifierConfig) -> None:
        super().__init__()
        self.pixels = Linear(config.num_image_channels, config.num_feature_channels)
        self.positions = nn.Embedding(config.num_elements, config.num_position_channels)
        self.position_projection = Linear(config.num_position_channels, config.num_position_channels)

    def forward(self, images: Tensor) -> Tensor:
        pixels = self.pixels(images.flatten(2).mT)
        positions = self.position_projection(self.positions.weight)
        return torch.cat((pixels, positions.expand(len(images), -1, -1)), dim=-1)


class ImageClassifier(PerceiverModel):
    """Says which class an image is of: by one learned query, or without a decoder by the mean of the latents."""

    def __init__(self, config: ImageClassifierConfig) -> None:
        super().__init__(config)
        channels = config.encoder.latent_channels
        self.input_adapter = LearnedInput(config) if config.inputs == "learned" else FourierInput(config)
        self.encoder = PerceiverEncoder(config.encoder, config.input_channels)
        self.decoder = (
            None
            if config.decoder is None
            else PerceiverDecoder(config.decoder, config.query_channels, channels, num_queries=1)
        )
        self.pooling_norm = make_norm("layernorm", channels) if config.pooling_norm else nn.Identity()
        self.output = Linear(config.query_channels, config.num_classes)
        self.apply(self.initialize)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, *image_shape) -> logits (batch, num_classes).

        Raises ValueError for images of another shape.
        """
        expected = (self.config.num_image_channels, *self.config.image_shape)
        if images.shape[1:] != expected:
            raise ValueError(f"images (channels, sizes) are {tuple(images.shape[1:])}, this model takes {expected}")
        latents = self.encoder(self.input_adapter(images.to(self.output.weight.dtype)))
        if self.decoder is None:
            return self.output(self.pooling_norm(latents.mean(dim=1)))
        return self.output(self.decoder(latents, self.decoder.queries)[:, 0])


def with_fourier_features(features: Tensor, num_bands: int, resolution: tuple[int, ...]) -> Tensor:
    """(batch, channels, *shape) -> (batch, elements, channels + Fourier channels)."""
    positions = grid_positions(features.shape[2:], device=features.device)
    encoded = fourier_features(positions, num_bands, resolution).to(features.dtype)
    return torch.cat((features.flatten(2).mT, encoded.expand(len(features), -1, -1)), dim=-1)
