"""Validation within the training loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NoReturn

from pretrain.distributed import Ranks, RanksError
from pretrain.engine import Engine
from pretrain.errors import InputError
from pretrain.tasks.task import Batch, Record, TaskOutput, TrainingData


class Interrupted(Exception):
    """Raised on every rank alike, where one was asked to stop: a validation may be longer than a step may take."""


class Validator:
    """Scores the model that is being trained."""

    def __init__(
        self,
        data: TrainingData,
        ranks: Ranks,
        engine: Engine,
        stopping: Callable[[], bool],
        watch: Callable[[str], None],
    ) -> None:
        """`stopping` says whether this rank was asked to stop, `watch` is told of every batch."""
        self._data, self._ranks, self._engine = data, ranks, engine
        self._stopping, self._watch = stopping, watch

    def __call__(self, step: int) -> Record:
        """The data's validation after `step` steps. Collective.

        Raises Interrupted, or InputError where validation data cannot be read.
        """
        self._engine.train(False)
        try:
            return self._data.validate(self._score, self._ranks, step)
        except InputError as error:
            if not isinstance(error, RanksError):
                self._ranks.together(partial(_raise, error))
            raise
        finally:
            self._engine.train()

    def _score(self, batch: Batch) -> TaskOutput:
        self._watch("validation")
        # Every rank scores as many batches. One that could not read its next says so here, before the others wait for
        # it in a forward pass that gathers weights from all.
        self._ranks.together(lambda: None)
        if self._ranks.max(self._stopping()):
            raise Interrupted
        return self._engine(batch.to(self._ranks.device))


def _raise(error: InputError) -> NoReturn:
    raise error
