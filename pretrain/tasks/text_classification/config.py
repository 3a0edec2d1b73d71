"""The schema of a run that trains a Perceiver IO to classify texts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from perceiver_ar.models.perceiver_config import MaskedLMConfig, TextClassifierConfig, presets_of
from pretrain.config import ExampleRunConfig
from pretrain.initial_weights import inherit, initial_architecture
from pretrain.schema import FilePath, Location, Section, resolve_preset

Name = Annotated[str, Field(min_length=1)]

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


class DataSection(Section):
    """Texts and their classes: one of `folder` and `dataset` says where they are."""

    folder: FilePath | None = None
    """Holds a folder for each split, with a folder of texts, UTF-8 files, for each class: `train/positive/17.txt`."""
    dataset: Location | None = None
    """A data set that `datasets` loads: its name on the Hugging Face Hub, or a local folder or file (CSV, JSON lines,
    Parquet, ...). A single file is the split `train`."""
    config: str | None = None
    """The data set's configuration, where it has several."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    text_column: Name = "text"
    label_column: Name = "label"
    """Holds classes by number or by name."""
    train: Name = "train"
    """Split to train on."""
    validation: Name | None = "validation"
    """Null holds out some of the texts of `train`, see `validation_fraction`."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the texts of `train`, chosen by their hash, that is held out where `validation` is null."""
    labels: Annotated[tuple[Name, ...], Field(min_length=2)] | None = None
    """Names of the classes in the order of their numbers; by default as the data has them, or the sorted names."""
    tokenizer: str = "bytes"
    """`bytes`, a tokenizer's file or folder, or its name on the Hub. Texts are cut to `model.max_seq_len` tokens."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.folder is None) == (self.dataset is None):
            raise ValueError("give exactly one of data.folder and data.dataset")
        if self.dataset is None and (self.config or self.revision):
            raise ValueError("config and revision are for data.dataset only, not data.folder")
        return self

    @field_validator("labels")
    @classmethod
    def _are_different(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError(f"names a class twice: {', '.join(value)}")
        return value


class TextClassificationConfig(ExampleRunConfig):
    task: Literal["text_classification"]
    model: ModelSection
    data: DataSection

    @field_validator("model", mode="before")
    @classmethod
    def _resolve_preset(cls, value: Any) -> Any:
        return resolve_preset(value, PRESETS)

    @field_validator("data")
    @classmethod
    def _names_each_class(cls, value: DataSection, info: ValidationInfo) -> DataSection:
        model = info.data.get("model")
        if model and value.labels is not None and len(value.labels) != model.num_classes:
            raise ValueError(f"labels has {len(value.labels)} names, model.num_classes is {model.num_classes}")
        return value

    @classmethod
    def complete(cls, data: dict[str, Any]) -> dict[str, Any]:
        found = initial_architecture(data)
        names = [field.name for field in fields(TextClassifierConfig)] if "num_classes" in found else FROM_MASKED_LM
        return inherit(data, {name: found[name] for name in names if name in found})
