"""What a run of any task left behind, opened from the path a user gives to a command."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from pretrain.checkpoint import damage, latest_checkpoint, load_weights, read_state
from pretrain.config import RunConfig, read_config
from pretrain.errors import InputError
from pretrain.tasks import open_task

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""By the names that configurations and options have for them."""


@dataclass(frozen=True)
class TrainedRun:
    """A checkpoint and the run it belongs to."""

    checkpoint: Path

    @classmethod
    def find(cls, path: Path) -> Self:
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
        config = read_config(self.state["config"])
        return config.model_copy(update={"run": config.run.model_copy(update={"dir": self.run_dir})})

    @property
    def dtype(self) -> torch.dtype:
        """What the run computed in."""
        return DTYPES[self.config.train.precision]

    def model(self) -> nn.Module:
        """The model with its fp32 weights, in evaluation mode."""
        with torch.device("meta"):
            model = open_task(self.config).build().model
        model.load_state_dict(load_weights(self.checkpoint), assign=True)
        return model.eval()
