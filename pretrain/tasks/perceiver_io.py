"""What tasks have in common whose model is a Perceiver IO."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pretrain.config import RunConfig
from pretrain.errors import InputError, Unavailable
from pretrain.initial_weights import architecture_misfits, load_initial_weights
from pretrain.preflight import has_begun

if TYPE_CHECKING:  # bad input is not to wait for torch
    from torch import nn

    from pretrain.tasks.task import CostTable

ConfigT = TypeVar("ConfigT", bound=RunConfig)


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
