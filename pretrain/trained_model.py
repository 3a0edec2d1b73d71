"""What a run left behind, opened from the path a user gives to a command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from perceiver_ar.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from pretrain.checkpoint import damage, latest_checkpoint, load_weights, read_state
from pretrain.config import RunConfig
from pretrain.corpus import Corpus, open_corpus
from pretrain.data import open_corpora, shard_cache
from pretrain.errors import InputError
from pretrain.schema import validate

if TYPE_CHECKING:  # transformers takes seconds to import: bad input is not to wait for it
    from transformers import PreTrainedTokenizerFast

    from perceiver_ar.hf import PerceiverARForCausalLM

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""By the names that configurations and options have for them."""


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint and the run it belongs to."""

    checkpoint: Path

    @classmethod
    def find(cls, path: Path) -> TrainedModel:
        """The checkpoint at `path`, or the newest intact one if `path` is a run directory.

        Raises `InputError` where there is none, or the one named is damaged.
        """
        if (path / "state.json").is_file():
            if (problem := damage(path)) is not None:
                raise InputError(f"{path}: damaged checkpoint: {problem}")
            return cls(path)
        if not path.is_dir():
            raise InputError(f"{path}: no such folder; give a run directory or one of its checkpoints")
        if (path / "config.json").is_file():
            raise InputError(f"{path}: is an exported folder already; give a run directory or one of its checkpoints")
        if not (path / "checkpoints").is_dir():
            raise InputError(f"{path}: neither a run directory (no checkpoints/) nor a checkpoint (no state.json)")
        checkpoint = latest_checkpoint(path)
        if checkpoint is None:
            raise InputError(f"{path / 'checkpoints'}: no intact checkpoint; train until the first one is saved")
        return cls(checkpoint)

    @property
    def run_dir(self) -> Path:
        return self.checkpoint.resolve().parent.parent

    @property
    def name(self) -> str:
        """As titles show it."""
        return f"{self.run_dir.name}, step {self.state['step']:,}"

    @cached_property
    def state(self) -> dict[str, Any]:
        """``state.json`` of the checkpoint."""
        return read_state(self.checkpoint)

    @cached_property
    def config(self) -> RunConfig:
        """Of the run when it wrote the checkpoint; `run.dir` is where the run lies now."""
        config = validate(RunConfig, self.state["config"])
        return config.model_copy(update={"run": config.run.model_copy(update={"dir": self.run_dir})})

    @property
    def dtype(self) -> torch.dtype:
        """What the run computed in."""
        return DTYPES[self.config.train.precision]

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
        """The corpora of the run, by name, at other places than the run had them if `moved_to` names these in order.

        Raises `InputError` where one is gone, damaged or has changed since.
        """
        trained_on = self.state["data"]["fingerprints"]
        if moved_to is None:
            corpora = open_corpora(self.config)
        elif len(moved_to) == len(trained_on):
            cache = shard_cache(self.config.data.cache, *moved_to)
            corpora = {name: open_corpus(place, cache) for name, place in zip(trained_on, moved_to, strict=True)}
        else:
            raise InputError(f"--data: {len(moved_to)} corpora, the run has {len(trained_on)}: {', '.join(trained_on)}")
        for name, corpus in corpora.items():
            if corpus.manifest.fingerprint != trained_on[name]:
                raise InputError(f"{corpus.location}: not the corpus {name} that {self.checkpoint} was trained on")
        return corpora

    def model(self) -> PerceiverAR:
        """The model with its fp32 weights, in evaluation mode."""
        config, weights = load_weights(self.checkpoint)
        with torch.device("meta"):
            model = PerceiverAR(config)
        model.load_state_dict(weights, assign=True)
        return model.eval()

    def hf_model(self, dtype: torch.dtype = torch.float32) -> PerceiverARForCausalLM:
        """The Hugging Face model, in evaluation mode."""
        from pretrain.hf_export import hf_model

        return hf_model(self, dtype)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Raises `InputError` where the run's tokenizer has no exact fast counterpart."""
        from pretrain.hf_export import hf_tokenizer

        return hf_tokenizer(self)
