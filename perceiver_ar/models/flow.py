"""Perceiver IO for optical flow: every pixel of two frames in, its motion out."""

from __future__ import annotations

from torch import Tensor, nn

from perceiver_ar.blocks.linear import Linear
from perceiver_ar.models.image import with_fourier_features
from perceiver_ar.models.perceiver import PerceiverEncoder
from perceiver_ar.models.perceiver_config import OpticalFlowConfig
from perceiver_ar.models.perceiver_io import PerceiverDecoder, PerceiverModel


class FlowInput(nn.Module):
    """Projected patches of both frames, with Fourier features of their positions.

    (batch, 2, patch channels, H, W) -> (batch, H * W, input channels)
    """

    def __init__(self, config: OpticalFlowConfig) -> None:
        super().__init__()
        self.num_bands = config.num_frequency_bands
        self.resolution = config.resolution
        self.patches = Linear(2 * config.num_patch_channels, config.num_feature_channels)

    def forward(self, patches: Tensor) -> Tensor:
        features = self.patches(patches.flatten(1, 2).movedim(1, -1))
        return with_fourier_features(features.movedim(-1, 1), self.num_bands, self.resolution)


class OpticalFlow(PerceiverModel):
    """Says where each pixel of the first frame goes: the encoded inputs are the output queries as well."""

    decoder: PerceiverDecoder

    def __init__(self, config: OpticalFlowConfig) -> None:
        super().__init__(config)
        self.input_adapter = FlowInput(config)
        self.encoder = PerceiverEncoder(config.encoder, config.input_channels)
        self.decoder = PerceiverDecoder(config.decoder, config.input_channels, config.encoder.latent_channels)
        self.output = Linear(config.input_channels, 2)
        self.apply(self.initialize)

    def forward(self, patches: Tensor) -> Tensor:
        """(batch, 2, patch channels, H, W), both frames' -> (batch, H, W, 2): motion right and down, in 20 pixels.

        Raises ValueError for patches of another shape.
        """
        config = self.config
        expected = (2, config.num_patch_channels, *config.image_shape)
        if patches.shape[1:] != expected:
            raise ValueError(f"patches are {tuple(patches.shape[1:])}, this model takes {expected}")
        inputs = self.input_adapter(patches.to(self.output.weight.dtype))
        decoded = self.decoder(self.encoder(inputs), inputs)
        return self.output(decoded).unflatten(1, config.image_shape) / config.rescale_factor
