"""What tasks have in common whose model is a Perceiver IO."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from pydantic import field_validator

from pretrain.config import RunConfig
from pretrain.errors import InputError, Unavailable
from pretrain.initial_weights import architecture_misfits, inherit, initial_architecture, load_initial_weights
from pretrain.preflight import has_begun
from pretrain.schema import merged, resolve_preset

if TYPE_CHECKING:  # bad input is not to wait for torch
    from torch import nn

    from pretrain.tasks.task import CostTable

ConfigT = TypeVar("ConfigT", bound=RunConfig)


class PerceiverIORunConfig(RunConfig):
    """A run whose `model` may be a preset, or what the model tells that it starts from."""

    architecture: ClassVar[Any]
    """The dataclass that the model is built from."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]

    @field_validator("model", mode="before", check_fields=False)
    @classmethod
    def _with_defaults(cls, value: Any) -> Any:
        """What a file leaves out of encoder or decoder is as in the preset, or else as in `architecture`."""
        if isinstance(value, dict) and "preset" not in value:
            parts: dict[str, Any] = {f.name: f.default for f in fields(cls.architecture) if is_dataclass(f.default)}
            value = merged({name: asdict(part) for name, part in parts.items() if name in value}, value)
        return resolve_preset(value, cls.presets)

    @classmethod
    def complete(cls, data: dict[str, Any]) -> dict[str, Any]:
        return inherit(data, initial_architecture(data, cls.architecture))


class PerceiverIOTask(Generic[ConfigT]):
    """The part of a `Task` that does not depend on what is read and answered."""

    def __init__(self, config: ConfigT) -> None:
        self._config = config
        self._model_section: Any = config.model  # type: ignore[attr-defined]  # every task has one
        self.init_from: str | None = self._model_section.init_from

    def problems(self, world_size: int) -> Iterator[str]:
        for check in self._checks(world_size):
            try:
                yield from check
            except Unavailable:
                raise
            except InputError as error:
                yield str(error)

    def _checks(self, world_size: int) -> Iterable[Iterator[str]]:
        """Each tells what is wrong, or raises InputError."""
        raise NotImplementedError

    def doubts(self) -> Iterator[str]:
        return iter(())

    def initialize(self, model: nn.Module) -> None:
        if self.init_from is not None:
            load_initial_weights(model, self.init_from)

    def attention_channels(self) -> int:
        encoder = self._model_section.encoder
        channels: int = encoder.self_attention_qk_channels or encoder.latent_channels
        return channels // encoder.self_attention_heads

    def activation_bytes(self) -> int | None:
        return None

    def cost_tables(self) -> Iterator[CostTable]:
        return iter(())

    def _initial_model_problems(self) -> Iterator[str]:
        """Of a run that has not begun: one that has does not need that model any more."""
        if self.init_from is not None and not has_begun(self._config.run.dir):
            yield from self._misfits(self.init_from)

    def _misfits(self, location: str) -> Iterator[str]:
        """Why the run cannot start from the model at `location`."""
        return architecture_misfits(self._model_section.architecture, location)
