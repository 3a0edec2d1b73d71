"""Perceiver models of `transformers`: their configurations and names of weights -> ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from perceiver_ar.convert.multimodal import multimodal_config, multimodal_names
from perceiver_ar.convert.names import TRANSFORMERS_CROSS_ATTENTION, Names, linear, parts, transformers_encoder
from perceiver_ar.models.multimodal_config import MultimodalConfig
from perceiver_ar.models.perceiver_config import (
    DecoderConfig,
    EncoderConfig,
    ImageClassifierConfig,
    MaskedLMConfig,
    OpticalFlowConfig,
    TextClassifierConfig,
)

TransformersConfig = (
    MaskedLMConfig | TextClassifierConfig | ImageClassifierConfig | OpticalFlowConfig | MultimodalConfig
)

MASKED_LM = "PerceiverForMaskedLM"
TEXT_CLASSIFIER = "PerceiverForSequenceClassification"
IMAGE_CLASSIFIERS: dict[str, Literal["fourier", "learned", "conv"]] = {
    "PerceiverForImageClassificationFourier": "fourier",
    "PerceiverForImageClassificationLearned": "learned",
    "PerceiverForImageClassificationConvProcessing": "conv",
}
OPTICAL_FLOW = "PerceiverForOpticalFlow"
MULTIMODAL = "PerceiverForMultimodalAutoencoding"
HEADS = (MASKED_LM, TEXT_CLASSIFIER, *IMAGE_CLASSIFIERS, OPTICAL_FLOW, MULTIMODAL)

DEFAULTS: dict[str, Any] = dict(
    num_latents=256,
    d_latents=1280,
    d_model=768,
    num_blocks=1,
    num_self_attends_per_block=26,
    num_self_attention_heads=8,
    num_cross_attention_heads=8,
    qk_channels=None,
    v_channels=None,
    cross_attention_shape_for_attention="kv",
    self_attention_widening_factor=1,
    cross_attention_widening_factor=1,
    hidden_act="gelu",
    attention_probs_dropout_prob=0.1,
    initializer_range=0.02,
    use_query_residual=True,
    vocab_size=262,
    max_position_embeddings=2048,
    image_size=56,
    train_size=(368, 496),
    num_frames=16,
    audio_samples_per_frame=1920,
    samples_per_patch=16,
    output_shape=(1, 16, 224, 224),
    output_num_channels=512,
    _label_trainable_num_channels=1024,
    num_labels=2,
)
"""Of its `PerceiverConfig`: what a ``config.json`` leaves out."""

_RESOLUTIONS = {"fourier": (224, 224), "learned": None, "conv": (56, 56)}
_FEATURE_CHANNELS = {"fourier": 64, "learned": 256, "conv": 64}


def from_transformers(
    head: str, values: Mapping[str, Any], image_shape: tuple[int, ...] | None = None
) -> TransformersConfig:
    """The configuration of a model of class `head` with these `values` in its ``config.json``.

    That says nothing of the size of images with Fourier features: `image_shape`, by default 224 x 224.

    Raises ValueError where the values make no model, or one that ours cannot be.
    """
    values = {name: values.get(name, default) for name, default in DEFAULTS.items()}
    for name, value in values.items():
        if isinstance(DEFAULTS[name], int) and not isinstance(value, int | float | list | tuple):
            raise ValueError(f"{name} must be a number, not {value!r}")
    if values["hidden_act"] != "gelu":
        raise ValueError(f"hidden_act must be 'gelu', not {values['hidden_act']!r}")
    encoder = _encoder(values)
    if head == MASKED_LM:
        channels = dict(qk_channels=256, v_channels=values["d_model"])
        decoder = _decoder(values, cross_attention_heads=8, **channels, cross_attention_residual=False)
        return MaskedLMConfig(**_text(values), encoder=encoder, decoder=decoder)
    if head == OPTICAL_FLOW:
        flow = OpticalFlowConfig(image_shape=tuple(values["train_size"]), encoder=encoder)
        shaped_as = flow.input_channels if _shaped_as_queries(values) else None
        return replace(flow, decoder=_decoder(values, qk_channels=shaped_as, cross_attention_residual=False))
    if head == MULTIMODAL:
        return multimodal_config(values, encoder)
    decoder = _decoder(values)
    if head == TEXT_CLASSIFIER:
        return TextClassifierConfig(**_text(values), num_classes=values["num_labels"], encoder=encoder, decoder=decoder)
    inputs = IMAGE_CLASSIFIERS[head]
    if inputs == "learned":
        image_shape = (values["image_size"], values["image_size"])
    return ImageClassifierConfig(
        inputs=inputs,
        image_shape=image_shape or (224, 224),
        max_resolution=_RESOLUTIONS[inputs],
        num_feature_channels=_FEATURE_CHANNELS[inputs],
        num_classes=values["num_labels"],
        encoder=encoder,
        decoder=decoder,
    )


def _text(values: Mapping[str, Any]) -> dict[str, Any]:
    return dict(
        vocab_size=values["vocab_size"],
        max_seq_len=values["max_position_embeddings"],
        num_input_channels=values["d_model"],
    )


def _encoder(values: Mapping[str, Any]) -> EncoderConfig:
    latents, qk = values["d_latents"], values["qk_channels"]
    if (v := values["v_channels"] or qk or latents) != latents:
        raise ValueError(f"v_channels ({v}) must be d_latents ({latents}): the latents are added to what they read")
    return EncoderConfig(
        num_latents=values["num_latents"],
        latent_channels=latents,
        cross_attention_heads=values["num_cross_attention_heads"],
        self_attention_heads=values["num_self_attention_heads"],
        cross_attention_qk_channels=qk or (latents if _shaped_as_queries(values) else None),
        cross_attention_v_channels=values["v_channels"],
        self_attention_qk_channels=qk,
        self_attention_v_channels=values["v_channels"],
        num_blocks=values["num_blocks"],
        layers_per_block=values["num_self_attends_per_block"],
        cross_attention_widening=values["cross_attention_widening_factor"],
        self_attention_widening=values["self_attention_widening_factor"],
        cross_attention_residual=bool(values["use_query_residual"]),
        attention_dropout=values["attention_probs_dropout_prob"],
        init_scale=values["initializer_range"],
    )


def _decoder(values: Mapping[str, Any], **options: Any) -> DecoderConfig:
    dropout, scale = values["attention_probs_dropout_prob"], values["initializer_range"]
    return DecoderConfig(attention_dropout=dropout, init_scale=scale, **options)


def _shaped_as_queries(values: Mapping[str, Any]) -> bool:
    """Queries and keys of cross-attention get the channels of the queries, by default those of keys and values."""
    return values["cross_attention_shape_for_attention"] == "q"


def transformers_names(config: TransformersConfig) -> Names:
    """Of all weights of a model with this configuration."""
    if isinstance(config, MultimodalConfig):
        return multimodal_names(config)
    classifies = isinstance(config, TextClassifierConfig | ImageClassifierConfig)
    # Its decoders of one modality are inside another one, but for that of masked language models.
    decoder = "perceiver.decoder" if isinstance(config, MaskedLMConfig) else "perceiver.decoder.decoder"
    names = transformers_encoder(config.encoder) | _inputs(config)
    names |= parts("decoder.cross_attention", f"{decoder}.decoding_cross_attention", TRANSFORMERS_CROSS_ATTENTION)
    if classifies or isinstance(config, MaskedLMConfig):
        names["decoder.queries"] = f"{decoder}.output_position_encodings.position_embeddings"
    if isinstance(config, MaskedLMConfig):
        return names | {"output_bias": "embedding_decoder.bias"}
    return names | linear("output", f"{decoder}.final_layer")


def input_channels(config: TransformersConfig) -> int:
    """Of the elements that the encoder reads."""
    if isinstance(config, MaskedLMConfig | TextClassifierConfig):
        return config.num_input_channels
    return config.input_channels


def _inputs(config: MaskedLMConfig | TextClassifierConfig | ImageClassifierConfig | OpticalFlowConfig) -> Names:
    theirs = "perceiver.input_preprocessor"
    if isinstance(config, MaskedLMConfig | TextClassifierConfig):
        return {
            "input_adapter.tokens.weight": f"{theirs}.embeddings.weight",
            "input_adapter.positions.weight": f"{theirs}.position_embeddings.weight",
        }
    if isinstance(config, OpticalFlowConfig):
        return linear("input_adapter.patches", f"{theirs}.conv_after_patches")
    if config.inputs == "conv":
        norm = ("weight", "bias", "running_mean", "running_var")
        return {
            "input_adapter.conv.conv.weight": f"{theirs}.convnet.conv.weight",
            **{f"input_adapter.conv.norm.{name}": f"{theirs}.convnet.batchnorm.{name}" for name in norm},
        }
    if config.inputs == "learned":
        return {
            **linear("input_adapter.pixels", f"{theirs}.convnet_1x1"),
            "input_adapter.positions.weight": f"{theirs}.position_embeddings.position_embeddings",
            **linear("input_adapter.position_projection", f"{theirs}.positions_projection"),
        }
    return {}
