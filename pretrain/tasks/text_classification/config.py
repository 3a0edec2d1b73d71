"""The schema of a run that trains a Perceiver IO to classify texts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from perceiver_ar.models.perceiver_config import MaskedLMConfig, TextClassifierConfig, presets_of
from pretrain.config import ExampleRunConfig
from pretrain.initial_weights import inherit, initial_architecture
from pretrain.schema import Location
from pretrain.tasks.labelled import LabelledDataSection, Name
from pretrain.tasks.perceiver_io import PerceiverIORunConfig

FROM_MASKED_LM = ("vocab_size", "max_seq_len", "num_input_channels", "encoder")
"""Fields that a classifier has in common with the masked language model that it starts from."""
PRESETS = {
    name: {field: preset[field] for field in FROM_MASKED_LM if field in preset}
    for name, preset in presets_of(MaskedLMConfig).items()
}
"""What reads texts in the papers' masked language models; the decoder is the classifier's own."""


@dataclass(frozen=True, kw_only=True)
class ModelSection(TextClassifierConfig):
    """An architecture, and the weights it starts with."""

    init_from: Location | None = None
    """A model to start from: a run, a checkpoint, an exported or converted folder, or a Hub name. Of a masked language
    model the classifier takes encoder and embeddings, of a classifier everything. What is left out of the architecture
    is that model's."""
    freeze_encoder: bool = False
    """Train the decoder alone: encoder and embeddings stay as they are."""

    @property
    def architecture(self) -> TextClassifierConfig:
        return TextClassifierConfig(**{field.name: getattr(self, field.name) for field in fields(TextClassifierConfig)})


class DataSection(LabelledDataSection):
    """Texts and their classes: one of `folder`, of UTF-8 files, and `dataset` says where they are. A single file (CSV,
    JSON lines, Parquet, ...) is a data set with the split `train`. Labels are numbers or names."""

    text_column: Name = "text"
    validation: Name | None = "validation"
    """Null holds out some of the texts of `train`, see `validation_fraction`."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the texts of `train`, chosen by their hash, that is held out where `validation` is null."""
    labels: Annotated[tuple[Name, ...], Field(min_length=2)] | None = None
    """Names of the classes in the order of their numbers; by default as the data has them, or the sorted names."""
    tokenizer: str = "bytes"
    """`bytes`, a tokenizer's file or folder, or its name on the Hub. Texts are cut to `model.max_seq_len` tokens."""

    @field_validator("labels")
    @classmethod
    def _are_different(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError(f"names a class twice: {', '.join(value)}")
        return value


class TextClassificationConfig(ExampleRunConfig, PerceiverIORunConfig):
    architecture = TextClassifierConfig
    presets = PRESETS

    task: Literal["text_classification"]
    model: ModelSection
    data: DataSection

    @field_validator("model")
    @classmethod
    def _freezes_what_has_learned(cls, value: ModelSection) -> ModelSection:
        if value.freeze_encoder and value.init_from is None:
            raise ValueError("freeze_encoder needs init_from: random weights would stay random")
        return value

    @field_validator("data")
    @classmethod
    def _names_each_class(cls, value: DataSection, info: ValidationInfo) -> DataSection:
        model = info.data.get("model")
        if model and value.labels is not None and len(value.labels) != model.num_classes:
            raise ValueError(f"labels has {len(value.labels)} names, model.num_classes is {model.num_classes}")
        return value

    @classmethod
    def complete(cls, data: dict[str, Any]) -> dict[str, Any]:
        found = initial_architecture(data, MaskedLMConfig, TextClassifierConfig)
        names = [field.name for field in fields(TextClassifierConfig)] if "num_classes" in found else FROM_MASKED_LM
        return inherit(data, {name: found[name] for name in names if name in found})
