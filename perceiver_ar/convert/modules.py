"""Which module each configuration is that of."""

from __future__ import annotations

import torch
from torch import nn

from perceiver_ar.models.config import PerceiverARConfig
from perceiver_ar.models.flow import OpticalFlow
from perceiver_ar.models.image import ImageClassifier
from perceiver_ar.models.multimodal import MultimodalAutoencoder
from perceiver_ar.models.multimodal_config import MultimodalConfig
from perceiver_ar.models.perceiver_ar import PerceiverAR
from perceiver_ar.models.perceiver_config import (
    ImageClassifierConfig,
    MaskedLMConfig,
    OpticalFlowConfig,
    TextClassifierConfig,
)
from perceiver_ar.models.text import MaskedLM, TextClassifier

Architecture = (
    PerceiverARConfig
    | MaskedLMConfig
    | TextClassifierConfig
    | ImageClassifierConfig
    | OpticalFlowConfig
    | MultimodalConfig
)

MODULES: dict[type, type[nn.Module]] = {
    PerceiverARConfig: PerceiverAR,
    MaskedLMConfig: MaskedLM,
    TextClassifierConfig: TextClassifier,
    ImageClassifierConfig: ImageClassifier,
    OpticalFlowConfig: OpticalFlow,
    MultimodalConfig: MultimodalAutoencoder,
}


def weight_shapes(config: Architecture) -> dict[str, tuple[int, ...]]:
    """Of all that the state dict of a model with this configuration holds."""
    with torch.device("meta"):
        model = MODULES[type(config)](config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
