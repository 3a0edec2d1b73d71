"""A causal language model that a run left behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch

from perceiver_ar.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from pretrain.corpus import Corpus
from pretrain.errors import InputError
from pretrain.tasks.causal_lm.config import CausalLMConfig
from pretrain.trained_corpora import trained_corpora
from pretrain.trained_run import DTYPES, TrainedRun

if TYPE_CHECKING:  # transformers takes seconds to import: bad input is not to wait for it
    from transformers import PreTrainedTokenizerFast

    from perceiver_ar.hf import PerceiverARForCausalLM

__all__ = ["DTYPES", "TrainedModel"]


@dataclass(frozen=True)
class TrainedModel(TrainedRun):
    """A checkpoint of a run that trains a Perceiver AR."""

    @classmethod
    def find(cls, path: Path) -> Self:
        """As `TrainedRun.find`; raises `InputError` where the run trains something else, too."""
        found = super().find(path)
        if (task := found.state["config"]["task"]) != "causal_lm":
            raise InputError(f"{path}: is a run of task {task}, not of a causal language model")
        return found

    @cached_property
    def config(self) -> CausalLMConfig:
        config = super().config
        assert isinstance(config, CausalLMConfig)
        return config

    @property
    def architecture(self) -> PerceiverARConfig:
        return self.config.model.architecture

    @property
    def within_documents(self) -> bool:
        """Whether it has learned to attend to nothing before the document a token is in."""
        return self.config.data.within_documents

    @property
    def end_id(self) -> int:
        """The token between documents."""
        return self.state["data"]["end_id"]

    def corpora(self, moved_to: Sequence[str] | None = None) -> dict[str, Corpus]:
        """As `trained_corpora`."""
        return trained_corpora(self, moved_to)

    def model(self) -> PerceiverAR:
        model = super().model()
        assert isinstance(model, PerceiverAR)
        return model

    def hf_model(self, dtype: torch.dtype = torch.float32) -> PerceiverARForCausalLM:
        """The Hugging Face model, in evaluation mode."""
        from pretrain.hf_export import hf_model
        from pretrain.tasks.causal_lm.release import CausalLMRelease

        return hf_model(CausalLMRelease(self), dtype)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Raises `InputError` where the run's tokenizer has no exact fast counterpart."""
        from pretrain.tasks.causal_lm.release import CausalLMRelease

        return CausalLMRelease(self).fast_tokenizer()
