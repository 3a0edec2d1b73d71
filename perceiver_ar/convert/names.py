"""Which weight of ours is which of another library's: tables that are read in both directions."""

from __future__ import annotations

from collections.abc import Container, Mapping

from torch import Tensor

from perceiver_ar.models.perceiver_config import EncoderConfig

Names = dict[str, str]
"""Our name of each weight -> theirs."""

_PIXELS = "input_adapter.pixels.weight"
"""A matrix, which transformers has as a convolution of single pixels."""


COUNTED_BATCHES = ("perceiver.input_preprocessor.convnet.batchnorm.num_batches_tracked",)
"""Of a batch norm of transformers, by whose momentum it means nothing: ours does without."""


def renamed(weights: Mapping[str, Tensor], names: Names, *, ignored: Container[str] = ()) -> dict[str, Tensor]:
    """Their weights under our names; what has none of ours keeps its own, unless it is `ignored`."""
    ours = {theirs: name for name, theirs in names.items()}
    found = {ours.get(name, name): tensor for name, tensor in weights.items() if name not in ignored}
    if _PIXELS in found:
        found[_PIXELS] = found[_PIXELS].flatten(1)
    return found


def renamed_back(weights: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Our weights under the names of transformers."""
    return {names[name]: tensor[..., None, None] if name == _PIXELS else tensor for name, tensor in weights.items()}


def parts(ours: str, theirs: str, table: Mapping[str, str]) -> Names:
    """The weights and biases of the modules in `table`, which lie in the modules `ours` and `theirs`."""
    return {f"{ours}.{a}.{kind}": f"{theirs}.{b}.{kind}" for a, b in table.items() for kind in ("weight", "bias")}


def linear(ours: str, theirs: str) -> Names:
    """Weight and bias of one module."""
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias")}


_TRANSFORMERS_LAYER = {
    "attention.q_proj": "attention.self.query",
    "attention.k_proj": "attention.self.key",
    "attention.v_proj": "attention.self.value",
    "attention.o_proj": "attention.output.dense",
    "mlp_norm": "layernorm",
    "mlp.up": "mlp.dense1",
    "mlp.down": "mlp.dense2",
}
TRANSFORMERS_SELF_ATTENTION = _TRANSFORMERS_LAYER | {"norm": "attention.self.layernorm1"}
TRANSFORMERS_CROSS_ATTENTION = _TRANSFORMERS_LAYER | {
    "q_norm": "attention.self.layernorm1",
    "kv_norm": "attention.self.layernorm2",
}


def transformers_encoder(config: EncoderConfig) -> Names:
    """Of its `PerceiverModel`, which has one cross-attention layer and one block of self-attention layers."""
    names = {"encoder.latents": "perceiver.embeddings.latents"}
    names |= parts("encoder.cross_attention.0", "perceiver.encoder.cross_attention", TRANSFORMERS_CROSS_ATTENTION)
    for i in range(config.layers_per_block):
        names |= parts(
            f"encoder.self_attention.0.{i}", f"perceiver.encoder.self_attends.{i}", TRANSFORMERS_SELF_ATTENTION
        )
    return names


def _perceiver_io_layer(attention: str, norms: Mapping[str, str]) -> dict[str, str]:
    projections = ("q_proj", "k_proj", "v_proj", "o_proj")
    return {
        **{f"attention.{name}": f"{attention}.attention.{name}" for name in projections},
        **{ours: f"{attention}.{theirs}" for ours, theirs in norms.items()},
        "mlp_norm": "1.module.0",
        "mlp.up": "1.module.1",
        "mlp.down": "1.module.3",
    }


def perceiver_io_cross_attention(ours: str, theirs: str, *, residual: bool = True) -> Names:
    """Of perceiver-io, where a residual is a module around the attention."""
    attention = "0.module" if residual else "0"
    return parts(ours, theirs, _perceiver_io_layer(attention, {"q_norm": "q_norm", "kv_norm": "kv_norm"}))


def perceiver_io_encoder(config: EncoderConfig) -> Names:
    """Of its `PerceiverEncoder`, whose first layer and block may have weights of their own."""
    names = {"encoder.latents": "0.latent_provider._query"}
    for n in range(config.distinct_cross_attentions):
        names |= perceiver_io_cross_attention(f"encoder.cross_attention.{n}", f"0.cross_attn_{'1n'[n]}")
    layer = _perceiver_io_layer("0.module", {"norm": "norm"})
    for n in range(config.distinct_blocks):
        for i in range(config.layers_per_block):
            names |= parts(f"encoder.self_attention.{n}.{i}", f"0.self_attn_{'1n'[n]}.{i}", layer)
    return names
