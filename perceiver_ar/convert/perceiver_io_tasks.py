"""The Perceiver IO models of krasserm/perceiver-io (0.11): hyper-parameters and names of weights -> ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perceiver_ar.convert.names import Names, linear, perceiver_io_cross_attention, perceiver_io_encoder
from perceiver_ar.models.perceiver_config import (
    DecoderConfig,
    EncoderConfig,
    ImageClassifierConfig,
    MaskedLMConfig,
    OpticalFlowConfig,
    TextClassifierConfig,
    fourier_channels,
)

PerceiverIOTaskConfig = MaskedLMConfig | TextClassifierConfig | ImageClassifierConfig | OpticalFlowConfig

MASKED_LM = "perceiver-io-masked-language-model"
TEXT_CLASSIFIER = "perceiver-io-text-classifier"
IMAGE_CLASSIFIER = "perceiver-io-image-classifier"
OPTICAL_FLOW = "perceiver-io-optical-flow"
PERCEIVER_IO_TASKS = (MASKED_LM, TEXT_CLASSIFIER, IMAGE_CLASSIFIER, OPTICAL_FLOW)
LIGHTNING_CLASSES = {
    ("TextEncoderConfig", "TextDecoderConfig"): MASKED_LM,
    ("TextEncoderConfig", "ClassificationDecoderConfig"): TEXT_CLASSIFIER,
    ("ImageEncoderConfig", "ClassificationDecoderConfig"): IMAGE_CLASSIFIER,
}
"""By the classes of the hyper-parameters `encoder` and `decoder`; it has trained no optical flow."""
COMPUTED_ON_USE = ("0.input_adapter.position_encoding.position_encoding",)
"""Fourier features."""

_ENCODER = dict(
    num_cross_attention_heads=8,
    num_cross_attention_qk_channels=None,
    num_cross_attention_v_channels=None,
    num_cross_attention_layers=1,
    first_cross_attention_layer_shared=False,
    cross_attention_widening_factor=1,
    num_self_attention_heads=8,
    num_self_attention_qk_channels=None,
    num_self_attention_v_channels=None,
    num_self_attention_layers_per_block=8,
    num_self_attention_blocks=1,
    first_self_attention_block_shared=True,
    self_attention_widening_factor=1,
    dropout=0.0,
    init_scale=0.02,
)
_DECODER = dict(
    num_cross_attention_heads=8,
    num_cross_attention_qk_channels=None,
    num_cross_attention_v_channels=None,
    cross_attention_widening_factor=1,
    cross_attention_residual=True,
    dropout=0.0,
    init_scale=0.02,
)
_TEXT_ENCODER = _ENCODER | dict(vocab_size=10003, max_seq_len=256, num_input_channels=64)
_CLASSIFICATION_DECODER = _DECODER | dict(num_output_queries=1, num_output_query_channels=256, num_classes=100)
_IMAGE_SHAPE = (368, 496)
_DEFAULTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    MASKED_LM: (_TEXT_ENCODER, _DECODER | dict(num_output_query_channels=None, vocab_size=10003, max_seq_len=512)),
    TEXT_CLASSIFIER: (_TEXT_ENCODER, _CLASSIFICATION_DECODER),
    IMAGE_CLASSIFIER: (_ENCODER | dict(image_shape=(224, 224, 3), num_frequency_bands=32), _CLASSIFICATION_DECODER),
    OPTICAL_FLOW: (
        _ENCODER
        | dict(image_shape=_IMAGE_SHAPE, num_patch_input_channels=27, num_patch_hidden_channels=64)
        | dict(num_frequency_bands=64),
        _DECODER | dict(image_shape=_IMAGE_SHAPE, rescale_factor=100.0),
    ),
}
"""Of the hyper-parameters of encoder and decoder: earlier versions had fewer, and saved only these."""


def perceiver_io_task_config(model_type: str, hparams: Mapping[str, Any]) -> PerceiverIOTaskConfig:
    """The configuration of a model of type `model_type`, one of those above, from its hyper-parameters.

    Raises ValueError where they make no model, or one that ours cannot be.
    """
    for part in ("encoder", "decoder"):
        if not isinstance(hparams[part], Mapping):
            raise ValueError(f"{part} must be hyper-parameters, not {hparams[part]!r}")
    encoder, decoder = (
        {name: _number(f"{part}.{name}", hparams[part].get(name, default)) for name, default in defaults.items()}
        for part, defaults in zip(("encoder", "decoder"), _DEFAULTS[model_type], strict=True)
    )
    sizes = dict(
        num_latents=_number("num_latents", hparams.get("num_latents", "absent")),
        latent_channels=_number("num_latent_channels", hparams.get("num_latent_channels", "absent")),
    )
    if model_type == MASKED_LM:
        return _masked_lm(encoder, decoder, sizes)
    if model_type == TEXT_CLASSIFIER:
        return _text_classifier(encoder, decoder, sizes)
    if model_type == IMAGE_CLASSIFIER:
        return _image_classifier(encoder, decoder, sizes)
    return _optical_flow(encoder, decoder, sizes)


def _number(name: str, value: Any) -> Any:
    numbers = value if isinstance(value, list | tuple) else [value]
    if not all(number is None or isinstance(number, int | float) for number in numbers):
        raise ValueError(f"{name} must be a number, not {value!r}")
    return value


def _masked_lm(encoder: dict[str, Any], decoder: dict[str, Any], sizes: dict[str, Any]) -> MaskedLMConfig:
    for name in ("vocab_size", "max_seq_len"):
        if encoder[name] != decoder[name]:
            raise ValueError(f"decoder.{name} ({decoder[name]}) must be that of the encoder ({encoder[name]})")
    query_channels = decoder["num_output_query_channels"]
    return MaskedLMConfig(
        vocab_size=encoder["vocab_size"],
        max_seq_len=encoder["max_seq_len"],
        num_input_channels=encoder["num_input_channels"],
        num_query_channels=query_channels,
        tied_output=query_channels is None,
        encoder=_encoder(encoder, sizes),
        decoder=_decoder(decoder, query_channels or encoder["num_input_channels"]),
    )


def _text_classifier(encoder: dict[str, Any], decoder: dict[str, Any], sizes: dict[str, Any]) -> TextClassifierConfig:
    if decoder["num_output_queries"] != 1:
        raise ValueError(f"decoder.num_output_queries must be 1, not {decoder['num_output_queries']}")
    return TextClassifierConfig(
        vocab_size=encoder["vocab_size"],
        max_seq_len=encoder["max_seq_len"],
        num_input_channels=encoder["num_input_channels"],
        num_classes=decoder["num_classes"],
        num_query_channels=decoder["num_output_query_channels"],
        encoder=_encoder(encoder, sizes),
        decoder=_decoder(decoder, decoder["num_output_query_channels"]),
    )


def _image_classifier(encoder: dict[str, Any], decoder: dict[str, Any], sizes: dict[str, Any]) -> ImageClassifierConfig:
    *shape, channels = encoder["image_shape"]
    return ImageClassifierConfig(
        image_shape=tuple(shape),
        num_image_channels=channels,
        num_classes=decoder["num_classes"],
        num_frequency_bands=encoder["num_frequency_bands"],
        num_query_channels=decoder["num_output_query_channels"],
        encoder=_encoder(encoder, sizes, channels_of_inputs=True),
        decoder=_decoder(decoder, decoder["num_output_query_channels"]),
    )


def _optical_flow(encoder: dict[str, Any], decoder: dict[str, Any], sizes: dict[str, Any]) -> OpticalFlowConfig:
    features, bands = encoder["num_patch_hidden_channels"], encoder["num_frequency_bands"]
    input_channels = features + fourier_channels(2, bands)
    # Its values default to the inputs' channels, also where queries and keys have others.
    values = encoder["num_cross_attention_v_channels"] or input_channels
    encoder = encoder | dict(num_cross_attention_v_channels=values)
    return OpticalFlowConfig(
        image_shape=tuple(encoder["image_shape"]),
        num_patch_channels=encoder["num_patch_input_channels"],
        num_feature_channels=features,
        num_frequency_bands=bands,
        rescale_factor=decoder["rescale_factor"],
        encoder=_encoder(encoder, sizes, channels_of_inputs=True),
        decoder=_decoder(decoder, input_channels),
    )


def _encoder(
    hparams: Mapping[str, Any], sizes: Mapping[str, Any], *, channels_of_inputs: bool = False
) -> EncoderConfig:
    """`channels_of_inputs` is what queries and keys have by default, instead of those of the latents."""
    default = None if channels_of_inputs else sizes["latent_channels"]
    return EncoderConfig(
        **sizes,
        cross_attention_heads=hparams["num_cross_attention_heads"],
        self_attention_heads=hparams["num_self_attention_heads"],
        cross_attention_qk_channels=hparams["num_cross_attention_qk_channels"] or default,
        cross_attention_v_channels=hparams["num_cross_attention_v_channels"],
        self_attention_qk_channels=hparams["num_self_attention_qk_channels"],
        self_attention_v_channels=hparams["num_self_attention_v_channels"],
        num_cross_attentions=hparams["num_cross_attention_layers"],
        num_blocks=hparams["num_self_attention_blocks"],
        layers_per_block=hparams["num_self_attention_layers_per_block"],
        cross_attention_sharing="all" if hparams["first_cross_attention_layer_shared"] else "except_first",
        self_attention_sharing="all" if hparams["first_self_attention_block_shared"] else "except_first",
        cross_attention_widening=hparams["cross_attention_widening_factor"],
        self_attention_widening=hparams["self_attention_widening_factor"],
        attention_dropout=hparams["dropout"],
        init_scale=hparams["init_scale"],
    )


def _decoder(hparams: Mapping[str, Any], query_channels: int) -> DecoderConfig:
    return DecoderConfig(
        cross_attention_heads=hparams["num_cross_attention_heads"],
        qk_channels=hparams["num_cross_attention_qk_channels"] or query_channels,
        v_channels=hparams["num_cross_attention_v_channels"],
        widening=hparams["cross_attention_widening_factor"],
        cross_attention_residual=hparams["cross_attention_residual"],
        attention_dropout=hparams["dropout"],
        init_scale=hparams["init_scale"],
    )


def perceiver_io_task_names(config: PerceiverIOTaskConfig) -> Names:
    """Of all weights of a model with this configuration."""
    names = perceiver_io_encoder(config.encoder)
    if isinstance(config, MaskedLMConfig | TextClassifierConfig):
        names["input_adapter.tokens.weight"] = "0.input_adapter.txt_embedding.weight"
        names["input_adapter.positions.weight"] = "0.input_adapter.pos_embedding.weight"
    if isinstance(config, OpticalFlowConfig):
        names |= linear("input_adapter.patches", "0.input_adapter.linear")
    else:
        names["decoder.queries"] = "1.output_query_provider._query"
    assert config.decoder is not None
    names |= perceiver_io_cross_attention(
        "decoder.cross_attention", "1.cross_attn", residual=config.decoder.cross_attention_residual
    )
    if not isinstance(config, MaskedLMConfig):
        return names | linear("output", "1.output_adapter.linear")
    if config.tied_output:
        return names | {"output_bias": "1.output_adapter.bias"}
    return names | {"unembed.weight": "1.output_adapter.linear.weight", "output_bias": "1.output_adapter.linear.bias"}
