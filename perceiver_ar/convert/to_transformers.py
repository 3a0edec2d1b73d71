"""Our Perceiver IO models -> Perceiver models of `transformers`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from perceiver_ar.convert.modules import weight_shapes
from perceiver_ar.convert.multimodal import multimodal_values
from perceiver_ar.convert.transformers_perceiver import (
    IMAGE_CLASSIFIERS,
    MASKED_LM,
    MULTIMODAL,
    OPTICAL_FLOW,
    TEXT_CLASSIFIER,
    TransformersConfig,
    from_transformers,
    input_channels,
)
from perceiver_ar.models.multimodal_config import MultimodalConfig
from perceiver_ar.models.perceiver_config import (
    ImageClassifierConfig,
    MaskedLMConfig,
    OpticalFlowConfig,
    TextClassifierConfig,
)

_HEADS = {
    MaskedLMConfig: MASKED_LM,
    TextClassifierConfig: TEXT_CLASSIFIER,
    OpticalFlowConfig: OPTICAL_FLOW,
    MultimodalConfig: MULTIMODAL,
}
_BESIDE_SHAPES = (
    "encoder.cross_attention_heads",
    "encoder.self_attention_heads",
    "encoder.cross_attention_residual",
    "encoder.num_cross_attentions",
    "encoder.num_blocks",
    "decoder.cross_attention_heads",
    "decoder.cross_attention_residual",
    "image_shape",
    "resolution",
    "rescale_factor",
    "video_shape",
    "video_patch",
    "video_resolution",
    "audio_resolution",
)
"""What decides on the outputs, and not on the shape of any weight."""


def to_transformers(config: TransformersConfig) -> tuple[str, dict[str, Any]]:
    """The class and the values of its `PerceiverConfig` that make the same model.

    Raises ValueError where there is none, with all that is in the way.
    """
    head = _head(config)
    values = _encoder_values(config) | _task_values(config)
    image_shape = config.image_shape if isinstance(config, ImageClassifierConfig) else None
    if differences := list(_differences(config, from_transformers(head, values, image_shape))):
        raise ValueError(f"no {head} of transformers is the same model: {'; '.join(differences)}")
    return head, values


def _differences(ours: TransformersConfig, theirs: TransformersConfig) -> Iterator[str]:
    for name in _BESIDE_SHAPES:
        here, there = _value(ours, name), _value(theirs, name)
        if here != there:
            yield f"{name} is {here} here, {there} there"
    here, there = weight_shapes(ours), weight_shapes(theirs)
    different = [name for name in [*here, *there] if here.get(name) != there.get(name)]
    if different:
        name = different[0]
        yield f"weight {name} is {here.get(name, 'absent')} here, {there.get(name, 'absent')} there"


def _value(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name, None)
    return config


def _head(config: TransformersConfig) -> str:
    if isinstance(config, ImageClassifierConfig):
        return next(head for head, inputs in IMAGE_CLASSIFIERS.items() if inputs == config.inputs)
    return _HEADS[type(config)]


def _encoder_values(config: TransformersConfig) -> dict[str, Any]:
    encoder, inputs = config.encoder, input_channels(config)
    cross_qk = encoder.cross_attention_qk_channels or inputs
    cross_v = encoder.cross_attention_v_channels or cross_qk
    self_qk = encoder.self_attention_qk_channels or encoder.latent_channels
    self_v = encoder.self_attention_v_channels or self_qk
    by_default = (cross_qk, self_qk) == (inputs, encoder.latent_channels)
    return dict(
        num_latents=encoder.num_latents,
        d_latents=encoder.latent_channels,
        d_model=inputs,
        num_blocks=encoder.num_blocks,
        num_self_attends_per_block=encoder.layers_per_block,
        num_self_attention_heads=encoder.self_attention_heads,
        num_cross_attention_heads=encoder.cross_attention_heads,
        # One field for both attentions: what they do not have in common is a difference.
        qk_channels=None if by_default else self_qk,
        v_channels=None if (cross_v, self_v) == (cross_qk, self_qk) else self_v,
        self_attention_widening_factor=int(encoder.self_attention_widening),
        cross_attention_widening_factor=int(encoder.cross_attention_widening),
        use_query_residual=encoder.cross_attention_residual,
        attention_probs_dropout_prob=encoder.attention_dropout,
        initializer_range=encoder.init_scale,
    )


def _task_values(config: TransformersConfig) -> dict[str, Any]:
    if isinstance(config, MultimodalConfig):
        return multimodal_values(config)
    values: dict[str, Any] = {}
    if isinstance(config, MaskedLMConfig | TextClassifierConfig):
        values |= dict(vocab_size=config.vocab_size, max_position_embeddings=config.max_seq_len)
    if isinstance(config, TextClassifierConfig | ImageClassifierConfig):
        values["num_labels"] = config.num_classes
    if isinstance(config, ImageClassifierConfig) and config.inputs == "learned":
        values["image_size"] = config.image_shape[0]
    if isinstance(config, OpticalFlowConfig):
        values["train_size"] = list(config.image_shape)
    return values
