"""Where a run's checkpoints lie and what they are made of.

    checkpoints/step-00001000/
      rank-00000.safetensors ...   pieces: flat fp32 parts of weights and of Adam's moments, those of one rank
      state.json                   step, configuration, data, code version, shapes of the parameters, ...
      manifest.json                size and xxh64 of every other file; written last

A tensor's name in a file says what it is part of: ``exp_avg/NAME:START`` is the part of NAME's first moment that begins
at element START of the flattened tensor. All files together hold every parameter's weight and moments exactly once, cut
in whatever way suited the ranks that wrote them: nothing else depends on ranks or ZeRO stage.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

FORMAT = 4
STATE = "state.json"
MANIFEST = "manifest.json"
UNFINISHED = ".tmp-"
"""What the names of folders begin with that are being written or deleted."""

Kind = Literal["weight", "exp_avg", "exp_avg_sq"]
"""What is kept for each parameter in fp32: itself and Adam's moments."""
KINDS: tuple[Kind, ...] = ("weight", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Piece:
    """Consecutive elements of a flattened parameter's weight or moment."""

    kind: Kind
    name: str
    """Of the parameter, in the model's state dict."""
    start: int
    tensor: Tensor
    """(elements,) fp32, on whatever device."""

    @property
    def stop(self) -> int:
        return self.start + self.tensor.numel()

    @property
    def key(self) -> str:
        """Its name in a file."""
        return f"{self.kind}/{self.name}:{self.start}"


def checkpoint_path(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:08d}"


def aside(checkpoint: Path) -> Path:
    """Where one is while another of its step takes its place: a checkpoint still, as its name says the same step."""
    return checkpoint.with_name(f"step-0{checkpoint.name.removeprefix('step-')}")


def rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def step_of(checkpoint: Path) -> int:
    """Completed steps, by the folder's name."""
    return int(checkpoint.name.removeprefix("step-"))


def checkpoints_of(run_dir: Path) -> list[Path]:
    """All of a run, damaged or not, the newest first; one set `aside` only follows that of its step."""
    folders = (run_dir / "checkpoints").glob("step-*")
    found = [path for path in folders if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=lambda path: (-step_of(path), len(path.name)))
