"""Reading a checkpoint: its state, and any part of any tensor, however the writers had cut them. Executes no code."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from pretrain.checkpoint.layout import FORMAT, MANIFEST, STATE, Kind
from pretrain.errors import InputError

if TYPE_CHECKING:
    from pretrain.engine import Engine


def read_state(checkpoint: Path) -> dict[str, Any]:
    """``state.json``: step, trained tokens, configuration, corpus, ... Raises InputError if its format is another."""
    state = json.loads((checkpoint / STATE).read_text())
    if state["format"] != FORMAT:
        raise InputError(f"{checkpoint}: has format {state['format']}, this program reads {FORMAT}: train anew")
    return state


def load_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The model's fp32 weights by their names in its state dict."""
    reader = CheckpointReader(checkpoint)
    return {name: reader.whole("weight", name) for name in reader.state["shapes"]}


def restore_checkpoint(checkpoint: Path, engine: Engine) -> None:
    """Set fp32 weights, moments and Adam's step count of `engine`, whose task already has the weights."""
    reader = CheckpointReader(checkpoint)
    engine.restore(reader.read)
    engine.adam_step = reader.state["adam_step"]


class CheckpointReader:
    """The tensors of a checkpoint that has been found whole. Only what is asked for is read."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.state = read_state(checkpoint)

    @cached_property
    def _pieces(self) -> dict[tuple[str, str], list[tuple[int, int, Any]]]:
        """(kind, parameter) -> (start, stop, stored elements), in order."""
        pieces = defaultdict(list)
        files = json.loads((self.checkpoint / MANIFEST).read_text())["files"]
        for path in (self.checkpoint / name for name in files if name.endswith(".safetensors")):
            file = safe_open(path, framework="pt")
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                kind, _, rest = key.partition("/")
                name, _, start = rest.rpartition(":")
                stored = file.get_slice(key)
                pieces[kind, name].append((int(start), int(start) + stored.get_shape()[0], stored))
        return {tensor: sorted(found, key=lambda piece: piece[0]) for tensor, found in pieces.items()}

    def read(self, kind: Kind, name: str, start: int, stop: int) -> Tensor:
        """Elements `start` to `stop` of a flattened weight or moment: (stop - start,) fp32 on the CPU."""
        out = torch.empty(stop - start)
        missing = stop - start
        for begin, end, stored in self._pieces[kind, name]:
            first, last = max(start, begin), min(stop, end)
            if first < last:
                out[first - start : last - start] = stored[first - begin : last - begin]
                missing -= last - first
        assert not missing, f"{self.checkpoint} lacks elements of {kind} of {name}"
        return out

    def whole(self, kind: Kind, name: str) -> Tensor:
        """One parameter's weight or moment in its own shape, fp32 on the CPU."""
        shape = self.state["shapes"][name]
        return self.read(kind, name, 0, math.prod(shape)).view(shape)
