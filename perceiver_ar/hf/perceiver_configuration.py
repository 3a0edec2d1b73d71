"""The Hugging Face face of the configurations of Perceiver and Perceiver IO models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields
from typing import Any, ClassVar, Self

from transformers import PreTrainedConfig

from perceiver_ar.models.from_json import from_json
from perceiver_ar.models.multimodal_config import MultimodalConfig
from perceiver_ar.models.perceiver_config import (
    ImageClassifierConfig,
    MaskedLMConfig,
    OpticalFlowConfig,
    TextClassifierConfig,
)

CLASSES = "num_classes"
"""The one field that transformers has under a name of its own: it is as many as there are labels."""


class PerceiverIOHFConfig(PreTrainedConfig):
    """``config.json`` of a model: every field of the configuration `native`, under its own name, parts as objects.

    Raises ValueError, as `native` does, for values that make no model.
    """

    native: ClassVar[Any]
    """The dataclass that the model itself is built from."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # transformers turns a subclass's annotations into fields: these are the original's, so that each exists once.
        for field in fields(cls.native):
            if field.name != CLASSES:
                cls.__annotations__[field.name] = Any
                if field.default is not MISSING:
                    setattr(cls, field.name, field.default)
        super().__init_subclass__(**kwargs)

    def __post_init__(self, **kwargs: Any) -> None:
        classes = kwargs.pop(CLASSES, None)
        if classes is not None and self.id2label is None:
            kwargs["num_labels"] = classes
        super().__post_init__(**kwargs)
        assert self.id2label is not None  # transformers makes names where there are none
        self.label2id = {label: int(number) for number, label in self.id2label.items()}
        if classes not in (None, self.num_labels):
            raise ValueError(f"id2label names {self.num_labels} classes, {CLASSES} is {classes}")
        for name, value in asdict(self.perceiver).items():
            if name != CLASSES:
                setattr(self, name, value)

    @classmethod
    def of(cls, perceiver: Any, labels: Sequence[str] | None = None) -> Self:
        """The configuration of a model built from `perceiver`, an instance of `native`; `labels` names its classes."""
        return cls(**asdict(perceiver), id2label=None if labels is None else dict(enumerate(labels)))

    @property
    def perceiver(self) -> Any:
        """What the model itself is built from, an instance of `native`."""
        own = {CLASSES: self.num_labels} | self.__dict__
        return from_json(self.native, {field.name: own[field.name] for field in fields(self.native)})


class PerceiverMaskedLMHFConfig(PerceiverIOHFConfig):
    model_type = "perceiver-masked-lm"
    native = MaskedLMConfig
    attribute_map: ClassVar[dict[str, str]] = {"max_position_embeddings": "max_seq_len"}


class PerceiverTextClassifierHFConfig(PerceiverIOHFConfig):
    model_type = "perceiver-text-classifier"
    native = TextClassifierConfig
    attribute_map: ClassVar[dict[str, str]] = {"max_position_embeddings": "max_seq_len"}


class PerceiverImageClassifierHFConfig(PerceiverIOHFConfig):
    model_type = "perceiver-image-classifier"
    native = ImageClassifierConfig


class PerceiverOpticalFlowHFConfig(PerceiverIOHFConfig):
    model_type = "perceiver-optical-flow"
    native = OpticalFlowConfig


class PerceiverMultimodalHFConfig(PerceiverIOHFConfig):
    model_type = "perceiver-multimodal"
    native = MultimodalConfig
