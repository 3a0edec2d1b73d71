"""Checkpoints of krasserm/perceiver-io (0.11): hyper-parameters and weights -> ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from perceiver_ar.models.config import PerceiverARConfig

_CAUSAL_SEQUENCE_MODEL_NAMES = (
    (r"input_adapter\.txt_embedding", "embed.tokens"),
    (r"input_adapter\.pos_embedding", "embed.positions"),
    (r"output_adapter\.bias", "output_bias"),
    (r"out_norm", "output_norm"),
    (r"cross_attention\.0\.module\.", "cross_attention."),
    (r"cross_attention\.1\.module\.0", "cross_attention.mlp_norm"),
    (r"cross_attention\.1\.module\.1", "cross_attention.mlp.up"),
    (r"cross_attention\.1\.module\.3", "cross_attention.mlp.down"),
    (r"self_attention\.(\d+)\.0\.module\.", r"self_attention.\1."),
    (r"self_attention\.(\d+)\.1\.module\.0", r"self_attention.\1.mlp_norm"),
    (r"self_attention\.(\d+)\.1\.module\.1", r"self_attention.\1.mlp.up"),
    (r"self_attention\.(\d+)\.1\.module\.3", r"self_attention.\1.mlp.down"),
)
_COMPUTED_ON_USE = "input_adapter.frq_pos_encoding.inv_freq"
_DEFAULTS = dict(
    vocab_size=262,
    max_seq_len=4096,
    max_latents=512,
    num_channels=512,
    num_heads=8,
    num_self_attention_layers=8,
    num_self_attention_rotary_layers=1,
    self_attention_widening_factor=4,
    cross_attention_widening_factor=4,
    cross_attention_dropout=0.5,
    post_attention_dropout=0.0,
    residual_dropout=0.0,
    output_norm=False,
    output_bias=True,
    abs_pos_emb=True,
    init_scale=0.02,
)
"""Of its `CausalSequenceModelConfig`: earlier versions had fewer fields, and saved only these."""


def causal_sequence_model_config(hparams: Mapping[str, Any]) -> PerceiverARConfig:
    """The configuration of a `CausalSequenceModel` from its hyper-parameters (also of the text and audio models).

    Raises ValueError where they make no model.
    """
    hparams = {name: hparams.get(name, default) for name, default in _DEFAULTS.items()}
    for name, value in hparams.items():
        if not isinstance(value, int | float):
            raise ValueError(f"{name} must be a number, not {value!r}")
    rotary_layers = hparams["num_self_attention_rotary_layers"]
    return PerceiverARConfig.preset(
        "perceiver_io",
        vocab_size=hparams["vocab_size"],
        max_seq_len=hparams["max_seq_len"],
        max_latents=hparams["max_latents"],
        num_channels=hparams["num_channels"],
        num_heads=hparams["num_heads"],
        num_layers=hparams["num_self_attention_layers"],
        rotary_layers=None if rotary_layers == -1 else rotary_layers,
        rotary_fraction=0.5 if hparams["abs_pos_emb"] else 1.0,
        learned_positions=hparams["abs_pos_emb"],
        self_attention_widening=hparams["self_attention_widening_factor"],
        cross_attention_widening=hparams["cross_attention_widening_factor"],
        prefix_dropout=hparams["cross_attention_dropout"],
        attention_dropout=hparams["post_attention_dropout"],
        residual_dropout=hparams["residual_dropout"],
        output_norm=hparams["output_norm"],
        output_bias=hparams["output_bias"],
        init_scale=hparams["init_scale"],
    )


def causal_sequence_model_weights(weights: Mapping[str, Tensor], config: PerceiverARConfig) -> dict[str, Tensor]:
    """Rename the weights of a `CausalSequenceModel` (or its gradients) and reorder rotated channels.

    It rotates neighbouring channels where ours pairs the two halves of the rotated part: the same function once the
    rows of the query and key projections change places.
    """
    converted = {}
    for name, tensor in weights.items():
        if name == _COMPUTED_ON_USE:
            continue
        for pattern, replacement in _CAUSAL_SEQUENCE_MODEL_NAMES:
            name = re.sub(f"^{pattern}", replacement, name)
        if ".q_proj." in name or ".k_proj." in name:
            tensor = pair_halves(tensor, config.num_heads, config.rotary_fraction)
        converted[name] = tensor
    return converted


def pair_halves(projection: Tensor, num_heads: int, rotary_fraction: float) -> Tensor:
    """Reorder the output rows of a projection trained with interleaved rotary pairs to pairs of halves."""
    head_channels = projection.shape[0] // num_heads
    rotated = int(rotary_fraction * head_channels) // 2 * 2
    order = torch.cat((torch.arange(0, rotated, 2), torch.arange(1, rotated, 2), torch.arange(rotated, head_channels)))
    return projection.unflatten(0, (num_heads, head_channels))[:, order].flatten(0, 1)
