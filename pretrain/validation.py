"""Validation within the training loop: windows spread over each corpus's validation split."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from pretrain.config import RunConfig
from pretrain.corpus import Batch
from pretrain.data import TrainingData, mixture_weights, tokens_per_byte
from pretrain.distributed import Ranks, RanksError
from pretrain.engine import Engine
from pretrain.errors import InputError
from pretrain.evaluation import EvaluationResult, evaluate_windows, perplexity
from pretrain.metrics import Record
from pretrain.tasks.causal_lm import TaskOutput


class Interrupted(Exception):
    """Raised on every rank alike, where one was asked to stop: a validation may be longer than a step may take."""


class Validator:
    """Scores the model that is being trained."""

    def __init__(
        self,
        config: RunConfig,
        data: TrainingData,
        ranks: Ranks,
        engine: Engine,
        stopping: Callable[[], bool],
        watch: Callable[[str], None],
    ) -> None:
        """`stopping` says whether this rank was asked to stop, `watch` is told of every batch what it belongs to."""
        self._config, self._data, self._ranks, self._engine = config, data, ranks, engine
        self._stopping, self._watch = stopping, watch
        self._windows = {
            name: corpus.validation_windows(
                context=config.model.max_seq_len,
                latents=config.model.max_latents,
                segments=config.data.within_documents,
            )
            for name, corpus in data.corpora.items()
        }

    def __call__(self, step: int) -> Record:
        """Loss, accuracy, perplexity and bits per byte after `step` steps, weighted as the mixture is then. Collective.

        Raises Interrupted, or InputError where a shard cannot be read.
        """
        self._engine.train(False)
        try:
            results = {name: self._evaluate(name) for name in self._windows}
        finally:
            self._engine.train()
        weights = mixture_weights(self._config, step)
        loss = sum(weight * results[name].loss for name, weight in weights.items())
        record: Record = {
            "loss": loss,
            "accuracy": sum(weight * results[name].accuracy for name, weight in weights.items()),
            "perplexity": perplexity(loss),
            "bits_per_byte": loss / math.log(2) * tokens_per_byte(self._data.corpora, "validation", weights),
        }
        if len(results) > 1:
            record["bits_per_byte_of"] = {name: result.bits_per_byte for name, result in results.items()}
        return record

    def _evaluate(self, name: str) -> EvaluationResult:
        config, split = self._config, self._data.corpora[name].manifest.splits["validation"]
        try:
            result = evaluate_windows(
                partial(self._score, name),
                self._windows[name],
                batch=config.train.micro_batch,
                tokens_per_byte=split.tokens / split.bytes,
                device=self._ranks.device,
                max_windows=config.evaluation.windows,
                rank=self._ranks.rank,
                world_size=self._ranks.size,
            )
        except InputError as error:
            if not isinstance(error, RanksError):
                self._ranks.together(partial(_raise, error))
            raise
        for sums in (result.nll, result.counts, result.correct):
            self._ranks.sum_(sums)
        return result

    def _score(self, name: str, batch: Batch) -> TaskOutput:
        self._watch(f"validation on {name}")
        # Every rank scores as many batches. One that could not read its next says so here, before the others wait for
        # it in a forward pass that gathers weights from all.
        self._ranks.together(lambda: None)
        if self._ranks.max(self._stopping()):
            raise Interrupted
        return self._engine(batch)


def _raise(error: InputError) -> NoReturn:
    raise error
