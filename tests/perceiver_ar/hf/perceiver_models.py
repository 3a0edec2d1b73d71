"""Tiny Perceiver IO models of all heads, which the tests of this folder share."""

from typing import Any

import torch

from perceiver_ar import hf
from perceiver_ar.models.multimodal_config import MultimodalConfig
from perceiver_ar.models.perceiver_config import (
    DecoderConfig,
    EncoderConfig,
    ImageClassifierConfig,
    MaskedLMConfig,
    OpticalFlowConfig,
    TextClassifierConfig,
)

ENCODER = EncoderConfig(
    num_latents=4, latent_channels=16, self_attention_heads=2, num_blocks=1, layers_per_block=1, init_scale=0.3
)
CONTEXT = 24
TEXT: dict[str, Any] = dict(vocab_size=262, max_seq_len=CONTEXT, num_input_channels=16, encoder=ENCODER)
LABELS = ["circle", "square", "star"]

CONFIGS = {
    "masked_lm": MaskedLMConfig(**TEXT, decoder=DecoderConfig(cross_attention_residual=False, init_scale=0.3)),
    "text_classifier": TextClassifierConfig(**TEXT, num_classes=3),
    "image_classifier": ImageClassifierConfig(
        image_shape=(8, 12), num_image_channels=1, num_classes=3, num_frequency_bands=2, encoder=ENCODER, decoder=None
    ),
    "conv_classifier": ImageClassifierConfig(
        image_shape=(16, 16), inputs="conv", num_classes=3, num_frequency_bands=2, encoder=ENCODER
    ),
    "optical_flow": OpticalFlowConfig(image_shape=(8, 12), num_frequency_bands=2, encoder=ENCODER),
    "multimodal": MultimodalConfig(
        video_shape=(2, 4, 4),
        video_patch=(1, 2, 2),
        video_frequency_bands=2,
        num_audio_samples=8,
        audio_patch=4,
        audio_frequency_bands=2,
        num_classes=3,
        num_label_query_channels=8,
        num_output_channels=8,
        encoder=ENCODER,
    ),
}
MODELS = {
    "masked_lm": hf.PerceiverIOForMaskedLM,
    "text_classifier": hf.PerceiverIOForSequenceClassification,
    "image_classifier": hf.PerceiverIOForImageClassification,
    "conv_classifier": hf.PerceiverIOForImageClassification,
    "optical_flow": hf.PerceiverIOForOpticalFlow,
    "multimodal": hf.PerceiverIOForMultimodalAutoencoding,
}


def build(kind: str) -> Any:
    torch.manual_seed(0)
    model = MODELS[kind]
    labels = LABELS if hasattr(CONFIGS[kind], "num_classes") else None
    return model(model.config_class.of(CONFIGS[kind], labels)).eval()


def inputs(kind: str, rows: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if kind in ("masked_lm", "text_classifier"):
        return {"input_ids": torch.randint(6, 262, (rows, 10), generator=generator)}
    if kind == "optical_flow":
        return {"patches": torch.randn(rows, 2, 27, 8, 12, generator=generator)}
    if kind == "multimodal":
        video, audio = torch.randn(rows, 2, 3, 4, 4, generator=generator), torch.randn(rows, 8, generator=generator)
        return {"video": video, "audio": audio}
    config = CONFIGS[kind]
    shape = (rows, config.num_image_channels, *config.image_shape)
    return {"pixel_values": torch.randn(*shape, generator=generator)}
