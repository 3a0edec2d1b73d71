"""The model a run starts from: `model.init_from`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perceiver_ar.models.config import PerceiverARConfig
from pretrain.errors import InputError, Unavailable

if TYPE_CHECKING:
    from torch import Tensor

MAY_DIFFER = (
    "max_seq_len",
    "max_latents",
    "rotary_base",
    "kv_norm",
    "z_loss",
    "prefix_dropout",
    "attention_dropout",
    "residual_dropout",
)
"""Fields of the architecture that a run may give values of its own: weights fit any."""


@dataclass(frozen=True)
class InitialModel:
    name: str
    """As the configuration has it."""
    architecture: Any
    """The model's configuration, a dataclass."""
    tokenizer: str | None
    """Its name, where the model tells."""
    tokenizer_hash: str | None
    weights: Callable[[], Iterable[tuple[str, Tensor]]]
    """Reads them, one after another where it can; raises OSError or ValueError where they are damaged."""

    def misfits(self, own: PerceiverARConfig) -> Iterator[str]:
        """What in a run's architecture the weights of a Perceiver AR do not go with."""
        for field in fields(self.architecture):
            ours, needed = getattr(own, field.name), getattr(self.architecture, field.name)
            ends = field.name == "max_seq_len" and self.architecture.learned_positions
            if ours != needed and (ends or field.name not in MAY_DIFFER):
                yield f"model.{field.name}: must be {needed} for the weights of {self.name}, not {ours}: leave it out"


def open_initial_model(name: str, *kinds: type) -> InitialModel:
    """The model of a run, a checkpoint, a folder, a Lightning checkpoint of perceiver-io or a Hub name.

    Raises `InputError` where it is none of these, or its configuration is of none of the `kinds` (given none, any
    serves); `Unavailable` where the Hub cannot be reached.
    """
    initial = _open(name)
    if not isinstance(initial.architecture, kinds or object):
        made_of, needed = type(initial.architecture).__name__, " or ".join(kind.__name__ for kind in kinds)
        raise InputError(f"model.init_from: {name} is a model of another kind: {made_of}, not {needed}")
    return initial


@cache
def _open(name: str) -> InitialModel:
    path = Path(name)
    try:
        if (path / "state.json").is_file() or (path / "checkpoints").is_dir():
            return _of_run(name)
        return _of_source(name)
    except (ConnectionError, Unavailable) as error:
        raise Unavailable(f"model.init_from: {error}") from error
    except (InputError, OSError, ValueError) as error:
        raise InputError(f"model.init_from: {error}") from error


# What they import needs torch, which runs that start from nothing are not to wait for.


def _of_run(name: str) -> InitialModel:
    from pretrain.checkpoint import CheckpointReader
    from pretrain.trained_run import TrainedRun

    trained = TrainedRun.find(Path(name))
    data = trained.state["data"]

    def weights() -> Iterator[tuple[str, Tensor]]:
        reader = CheckpointReader(trained.checkpoint)
        return ((weight, reader.whole("weight", weight)) for weight in reader.state["shapes"])

    architecture = trained.config.model.architecture  # type: ignore[attr-defined]  # every task has one
    return InitialModel(name, architecture, data.get("tokenizer"), data.get("tokenizer_hash"), weights)


def _of_source(name: str) -> InitialModel:
    from perceiver_ar.convert.sources import open_source
    from perceiver_ar.hub import read_json

    source = open_source(name)
    file = None if source.folder is None else source.folder / "training.json"
    training = read_json(file) if file is not None and file.is_file() else {}
    return InitialModel(
        name,
        source.architecture,
        training.get("tokenizer"),
        training.get("tokenizer_hash"),
        lambda: source.weights().items(),
    )
