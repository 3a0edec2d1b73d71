"""transformers' PerceiverForMultimodalAutoencoding: its configuration in both directions, and names of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from perceiver_ar.convert.names import TRANSFORMERS_CROSS_ATTENTION, Names, linear, parts, transformers_encoder
from perceiver_ar.models.multimodal_config import MultimodalConfig
from perceiver_ar.models.perceiver_config import DecoderConfig, EncoderConfig

_MODALITIES = {"video": "image", "audio": "audio", "label": "label"}
"""Ours -> theirs."""


def multimodal_config(values: Mapping[str, Any], encoder: EncoderConfig) -> MultimodalConfig:
    """The model of a `PerceiverConfig` with these `values`, all of them, which describe an `encoder`.

    Raises ValueError where they make no model.
    """
    frames, side = values["num_frames"], values["image_size"]
    config = MultimodalConfig(
        video_shape=tuple(values["output_shape"][1:]),
        video_max_resolution=(frames, side, side),
        num_audio_samples=frames * values["audio_samples_per_frame"],
        audio_patch=values["samples_per_patch"],
        num_classes=values["num_labels"],
        num_label_query_channels=values["_label_trainable_num_channels"],
        num_output_channels=values["output_num_channels"],
        encoder=encoder,
    )
    decoder = DecoderConfig(
        qk_channels=config.query_channels if values["cross_attention_shape_for_attention"] == "q" else None,
        cross_attention_residual=False,
        attention_dropout=encoder.attention_dropout,
        init_scale=encoder.init_scale,
    )
    return replace(config, decoder=decoder)


def multimodal_values(config: MultimodalConfig) -> dict[str, Any]:
    """What a `PerceiverConfig` says of a model like `config`, its encoder aside.

    Their model has no other values of the remaining fields than the published ones: it is for the caller to see whether
    `multimodal_config` leads back to `config`.
    """
    frames, height, width = config.video_shape
    return dict(
        d_model=config.input_channels,
        num_frames=frames,
        image_size=config.video_resolution[1],
        output_shape=[1, frames, height, width],
        audio_samples_per_frame=config.num_audio_samples // frames,
        samples_per_patch=config.audio_patch,
        num_labels=config.num_classes,
        _label_trainable_num_channels=config.num_label_query_channels,
        output_num_channels=config.num_output_channels,
    )


def multimodal_names(config: MultimodalConfig) -> Names:
    """Our name of each weight -> that of `PerceiverForMultimodalAutoencoding`."""
    names = transformers_encoder(config.encoder)
    for ours, theirs in _MODALITIES.items():
        names[f"input_adapter.{ours}.padding"] = f"perceiver.input_preprocessor.padding.{theirs}"
        names[f"input_adapter.{ours}.mask_token"] = f"perceiver.input_preprocessor.mask.{theirs}"
        names[f"queries.{ours}.padding"] = f"perceiver.decoder.padding.{theirs}"
        names |= linear(f"{ours}_output", f"perceiver.output_postprocessor.modalities.{theirs}.classifier")
    label = "perceiver.decoder.modalities.label.decoder.output_position_encodings.position_embeddings"
    decoder = "perceiver.decoder.decoder"
    return {
        **names,
        "queries.class_query": label,
        **parts("decoder.cross_attention", f"{decoder}.decoding_cross_attention", TRANSFORMERS_CROSS_ATTENTION),
        **linear("output", f"{decoder}.final_layer"),
    }
