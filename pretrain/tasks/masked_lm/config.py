"""The schema of a run that trains a Perceiver IO to tell masked tokens."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from perceiver_ar.models.perceiver_config import MaskedLMConfig, presets_of
from pretrain.config import Count, Fraction
from pretrain.corpus.config import CorpusRunConfig, DataSection
from pretrain.schema import Location, Section
from pretrain.tasks.perceiver_io import PerceiverIORunConfig


@dataclass(frozen=True, kw_only=True)
class ModelSection(MaskedLMConfig):
    """An architecture, and the weights it starts with."""

    init_from: Location | None = None
    """A masked language model to start from: a run, a checkpoint, an exported or converted folder, or a Hub name. What
    is left out of the architecture is that model's."""

    @property
    def architecture(self) -> MaskedLMConfig:
        return MaskedLMConfig(**{field.name: getattr(self, field.name) for field in fields(MaskedLMConfig)})


class MaskingSection(Section):
    """What is hidden from the model: of a `fraction` of the text, `mask_share` is replaced by the mask, `random_share`
    by random tokens, and the rest stays as it is."""

    unit: Literal["token", "whole_word"] = "token"
    """What is chosen as one. Words are what stands between whitespace: languages without it have none."""
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.15
    mask_share: Fraction = 0.8
    random_share: Fraction = 0.1
    static: bool = False
    """The same tokens of a text are masked whenever it is read; by default others each time."""
    mask_id: Count | None = None
    """By default that of the tokenizer's mask token, which `bytes` has."""

    @model_validator(mode="after")
    def _shares_are_parts(self) -> Self:
        if self.mask_share + self.random_share > 1:
            raise ValueError(
                f"mask_share ({self.mask_share:g}) and random_share ({self.random_share:g}) must add up to at most 1"
            )
        return self


class MaskedLMRunConfig(CorpusRunConfig, PerceiverIORunConfig):
    architecture = MaskedLMConfig
    presets = presets_of(MaskedLMConfig)

    task: Literal["masked_lm"]
    model: ModelSection
    masking: MaskingSection = MaskingSection()

    @field_validator("data")
    @classmethod
    def _is_text_to_mask(cls, value: DataSection) -> DataSection:
        if value.copy_task is not None:
            raise ValueError("copy_task has nothing to mask: give data.corpus, data.mixture or data.stream")
        if value.segments:
            raise ValueError("segments must be false, latents read all of a window: use data.windows crop")
        return value

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size

    @property
    def context(self) -> int:
        return self.model.max_seq_len

    @property
    def latents(self) -> int:
        return self.model.max_seq_len  # windows end to end: any token may be masked
