"""The schema of a run that trains a Perceiver AR to predict the next token."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from perceiver_ar.models.config import PRESETS, PerceiverARConfig
from pretrain.config import CONFIG_FILE
from pretrain.corpus.config import CorpusRunConfig
from pretrain.errors import InputError
from pretrain.initial_model import open_initial_model
from pretrain.schema import Location, load_yaml, resolve_preset, validate


@dataclass(frozen=True, kw_only=True)
class ModelSection(PerceiverARConfig):
    """An architecture, and the weights it starts with."""

    init_from: Location | None = None
    """A run, a checkpoint, a folder, a Lightning checkpoint of perceiver-io, or ``owner/name[@revision]`` on the Hub:
    the run starts with that model's weights, and fields that are left out are that model's."""

    @property
    def architecture(self) -> PerceiverARConfig:
        values = asdict(self)
        del values["init_from"]
        return PerceiverARConfig(**values)


class CausalLMConfig(CorpusRunConfig):
    task: Literal["causal_lm"] = "causal_lm"
    model: ModelSection

    @field_validator("model", mode="before")
    @classmethod
    def _resolve_preset(cls, value: Any) -> Any:
        return resolve_preset(value, PRESETS)

    @classmethod
    def complete(cls, data: dict[str, Any]) -> dict[str, Any]:
        model = data.get("model")
        if isinstance(model, dict) and isinstance(model.get("init_from"), str):
            return data | {"model": _initial_architecture(model, data.get("run")) | model}
        return data

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size

    @property
    def context(self) -> int:
        return self.model.max_seq_len

    @property
    def latents(self) -> int:
        return self.model.max_latents


def _initial_architecture(model: dict[str, Any], run: Any) -> dict[str, Any]:
    """What `model` need not say, as the model tells that it starts from: when the run began, if it has."""
    if model.keys() >= {field.name for field in fields(PerceiverARConfig)}:
        return {}
    if "preset" in model:
        raise InputError("model.preset: leave it out: model.init_from tells the architecture")
    name = os.path.expanduser(model["init_from"])
    if isinstance(run, dict) and isinstance(run.get("dir"), str):
        with suppress(InputError):  # not begun, or what it left is refused later
            begun = validate(CausalLMConfig, load_yaml(Path(run["dir"], CONFIG_FILE).expanduser())).model
            if begun.init_from == name:
                return asdict(begun.architecture)
    return asdict(open_initial_model(name, PerceiverARConfig).architecture)
