"""What a run takes from the model it starts from, `model.init_from`: the architecture it leaves out, and weights."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.config import CONFIG_FILE
from pretrain.corpus.tokenizers import Tokenizer
from pretrain.errors import InputError
from pretrain.initial_model import open_initial_model
from pretrain.schema import load_yaml, merged

if TYPE_CHECKING:  # bad input is not to wait for torch
    from torch import nn

MAY_DIFFER = ("attention_dropout", "residual_dropout", "sequence_dropout", "init_scale")
"""Fields that weights fit any value of."""


def initial_architecture(data: dict[str, Any], *kinds: type) -> dict[str, Any]:
    """Of the model that the run in a YAML file starts from, nested; empty where the file tells its own.

    Raises InputError where there is no such model of these kinds. A run that has begun does not need it any more.
    """
    model = data.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("init_from"), str) or "preset" in model:
        return {}
    begun = _begun(data.get("run"), model["init_from"])
    return begun or asdict(open_initial_model(os.path.expanduser(model["init_from"]), *kinds).architecture)


def inherit(data: dict[str, Any], architecture: dict[str, Any]) -> dict[str, Any]:
    """What a YAML file holds, with `architecture` for what its `model` leaves out, at every depth."""
    return data | {"model": merged(architecture, data["model"])} if architecture else data


def architecture_misfits(own: Any, location: str, names: Sequence[str] | None = None) -> Iterator[str]:
    """What in a run's architecture, a dataclass, the weights of the model at `location` do not go with.

    Args:
        names: The fields to look at; None for all of them, of a model of the same kind.

    Raises InputError where it is of another kind.
    """
    kinds = (type(own),) if names is None else ()
    theirs, ours = _flat(asdict(open_initial_model(location, *kinds).architecture)), _flat(asdict(own))
    for name, needed in theirs.items():
        counts = (names is None or name.partition(".")[0] in names) and name.rpartition(".")[2] not in MAY_DIFFER
        if counts and ours[name] != needed:
            yield f"model.{name}: must be {needed} for the weights of {location}, not {ours[name]}: leave it out"


def tokenizer_misfits(location: str, tokenizer: Tokenizer) -> Iterator[str]:
    """Why a run on tokens of `tokenizer` cannot start from the model at `location`, if that tells its tokenizer."""
    initial = open_initial_model(location)
    if initial.tokenizer_hash not in (None, tokenizer.hash):
        yield (
            f"model.init_from: {location} was trained on tokens of {initial.tokenizer} ({initial.tokenizer_hash}), "
            f"not of {tokenizer.name} ({tokenizer.hash}): use the model's tokenizer"
        )


def load_initial_weights(model: nn.Module, location: str, parts: Sequence[str] | None = None) -> None:
    """Give `model` the weights of equal name of the model at `location`: a run, a checkpoint, a folder, a Hub name.

    Args:
        parts: The children of `model` that get them, by name; None for all weights.

    Raises InputError where a weight is missing there, or of another shape, or damaged.
    """
    state = model.state_dict()
    wanted = {name: weight for name, weight in state.items() if parts is None or name.partition(".")[0] in parts}
    missing = dict(wanted)
    try:
        for name, weight in open_initial_model(location).weights():
            if missing.pop(name, None) is None:
                continue
            if wanted[name].shape != weight.shape:
                shapes = f"{tuple(weight.shape)} in {location}, by the configuration {tuple(wanted[name].shape)}"
                raise InputError(f"model.init_from: weight {name} is {shapes}")
            wanted[name].copy_(weight)
    except (OSError, ValueError) as error:
        raise InputError(f"model.init_from: {error}") from error
    if missing:
        raise InputError(
            f"model.init_from: {location} has no weight {next(iter(missing))}, nor {len(missing) - 1} others"
        )


def _begun(run: Any, init_from: str) -> dict[str, Any] | None:
    """The model of the run in the run folder, if it has begun and started from the same."""
    if isinstance(run, dict) and isinstance(run.get("dir"), str):
        with suppress(InputError):  # not begun, or what it left is refused later
            model = load_yaml(Path(run["dir"], CONFIG_FILE).expanduser()).get("model")
            if isinstance(model, dict) and model.get("init_from") == os.path.expanduser(init_from):
                return model
    return None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
