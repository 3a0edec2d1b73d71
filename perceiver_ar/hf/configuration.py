"""The Hugging Face face of `PerceiverARConfig`."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any, ClassVar, get_type_hints

from transformers import PreTrainedConfig

from perceiver_ar.models.config import PerceiverARConfig

BYTE_VOCABULARY = 262

_hints = get_type_hints(PerceiverARConfig)


class PerceiverARHFConfig(PreTrainedConfig):
    """`config.json` of a Perceiver AR: every field of `PerceiverARConfig`, under its own name.

    Raises ValueError, as `PerceiverARConfig` does, for values that make no model.
    """

    model_type = "perceiver-ar"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "num_channels",
        "num_attention_heads": "num_heads",
        "max_position_embeddings": "max_seq_len",
    }
    # transformers turns a subclass's annotations into fields: these are the original's, so that each exists once.
    __annotations__.update({field.name: _hints[field.name] for field in fields(PerceiverARConfig)})
    locals().update({f.name: BYTE_VOCABULARY if f.default is MISSING else f.default for f in fields(PerceiverARConfig)})

    def __post_init__(self, **kwargs: Any) -> None:
        self.use_cache = kwargs.pop("use_cache", True)
        super().__post_init__(**kwargs)
        _ = self.perceiver_ar

    @property
    def perceiver_ar(self) -> PerceiverARConfig:
        """What the model itself is built from."""
        return PerceiverARConfig(**{field.name: getattr(self, field.name) for field in fields(PerceiverARConfig)})

    @property
    def num_hidden_layers(self) -> int:
        """The cross-attention layer and the self-attention layers."""
        return 1 + self.num_layers
