"""What a run left behind, opened from the path a user gives to a command."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from perceiver_ar.models.perceiver_ar import PerceiverAR
from pretrain.checkpoint import damage, latest_checkpoint, load_weights, read_state
from pretrain.config import RunConfig
from pretrain.corpus import Corpus, open_corpus
from pretrain.errors import InputError
from pretrain.schema import validate


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
        if not (path / "checkpoints").is_dir():
            raise InputError(f"{path}: neither a run directory (no checkpoints/) nor a checkpoint (no state.json)")
        checkpoint = latest_checkpoint(path)
        if checkpoint is None:
            raise InputError(f"{path / 'checkpoints'}: no intact checkpoint; train until the first one is saved")
        return cls(checkpoint)

    @property
    def run_dir(self) -> Path:
        return self.checkpoint.resolve().parent.parent

    @cached_property
    def state(self) -> dict[str, Any]:
        """``state.json`` of the checkpoint."""
        return read_state(self.checkpoint)

    @cached_property
    def config(self) -> RunConfig:
        """Of the run when it wrote the checkpoint."""
        return validate(RunConfig, self.state["config"])

    @property
    def dtype(self) -> torch.dtype:
        """What the run computed in."""
        return torch.bfloat16 if self.config.train.precision == "bf16" else torch.float32

    def corpus(self) -> Corpus:
        """The corpus of the run. Raises `InputError` if it is gone, damaged or has changed since."""
        return open_corpus(self.config.data.corpus)

    def model(self) -> PerceiverAR:
        """The model with its fp32 weights, in evaluation mode."""
        config, weights = load_weights(self.checkpoint)
        with torch.device("meta"):
            model = PerceiverAR(config)
        model.load_state_dict(weights, assign=True)
        return model.eval()
