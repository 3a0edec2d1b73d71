"""The data of a run on text: what it trains on, and the texts it is validated on."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from pretrain.corpus import (
    Corpus,
    MixturePart,
    SampleSequence,
    ShardCache,
    Windows,
    open_corpus,
    order_key,
)
from pretrain.corpus.config import CacheSection, CorpusRunConfig
from pretrain.corpus.copying import COPY, CopyCorpus
from pretrain.corpus.windows import IGNORED
from pretrain.errors import InputError
from pretrain.tasks.task import Record, Score

if TYPE_CHECKING:  # they import torch: bad input is not to wait for it
    from pretrain.corpus.reader import Batch, StepReader
    from pretrain.distributed import Ranks
    from pretrain.evaluation import EvaluationResult
    from pretrain.progress import Progress

VALIDATION_FOLDER = "validation"
"""In the run folder: the held-out text of a data set that is streamed."""


class CorpusData:
    """Token corpora by name. Whatever is trained on, their `validation` splits are what it is validated on."""

    def __init__(self, config: CorpusRunConfig) -> None:
        """Raises InputError where a corpus is missing or damaged, or they do not go together."""
        self._config = config
        self.corpora = open_corpora(config)

    def measures(self, loss: float, step: int) -> Record:
        return {"bits_per_byte": self.bits_per_byte(loss, "train", step)}

    def bits_per_byte(self, loss: float, split: str, step: int) -> float:
        """Of a loss in nats per token, in the mixture of a step."""
        return loss / math.log(2) * tokens_per_byte(self.corpora, split, mixture_weights(self._config, step))

    def changes_at(self, step: int) -> bool:
        return step > 0 and mixture_weights(self._config, step) != mixture_weights(self._config, step - 1)

    def validate(self, score: Score, ranks: Ranks, step: int) -> Record:
        """Loss, accuracy, perplexity and bits per byte, weighted as the mixture is after `step` steps. Collective."""
        from pretrain.evaluation import perplexity

        results = {name: self._score(name, score, ranks) for name in self.corpora}
        weights = mixture_weights(self._config, step)
        loss = sum(weight * results[name].loss for name, weight in weights.items())
        record: Record = {
            "loss": loss,
            "accuracy": sum(weight * results[name].accuracy for name, weight in weights.items()),
            "perplexity": perplexity(loss),
            "bits_per_byte": self.bits_per_byte(loss, "validation", step),
        }
        if len(results) > 1:
            record["bits_per_byte_of"] = {name: result.bits_per_byte for name, result in results.items()}
        return record

    def _score(self, name: str, score: Score, ranks: Ranks) -> EvaluationResult:
        from pretrain.evaluation import evaluate_windows

        config, split = self._config, self.corpora[name].manifest.splits["validation"]
        result = evaluate_windows(
            score,
            self._windows[name],
            batch=config.train.micro_batch,
            tokens_per_byte=split.tokens / split.bytes,
            device=ranks.device,
            max_windows=config.evaluation.windows,
            rank=ranks.rank,
            world_size=ranks.size,
        )
        for sums in (result.nll, result.counts, result.correct):
            ranks.sum_(sums)
        return result

    @cached_property
    def _windows(self) -> dict[str, Windows]:
        config = self._config
        return {
            name: corpus.validation_windows(
                context=config.context, latents=config.latents, segments=config.data.within_documents
            )
            for name, corpus in self.corpora.items()
        }

    def describe(self) -> Record:
        return describe_data(self.corpora)

    def show(self, batch: Batch, row: int) -> str:
        ids = batch.targets[row]
        return next(iter(self.corpora.values())).tokenizer().decode(ids[ids != IGNORED].numpy())


class PreparedData(CorpusData):
    """Data with a window for every number: one corpus, or a mixture of several."""

    def __init__(self, config: CorpusRunConfig) -> None:
        super().__init__(config)
        self.samples = SampleSequence(list(self._parts()), seed=config.run.seed, global_batch=config.train.global_batch)

    def _parts(self) -> Iterator[MixturePart]:
        config = self._config
        for name, corpus in self.corpora.items():
            fingerprint = corpus.manifest.fingerprint
            windows = corpus.training_windows(
                config.data.windows,
                context=config.context,
                latents=config.latents,
                key=order_key(fingerprint, config.run.seed),
                segments=config.data.segments,
            )
            weights = {0: 1.0} if config.data.mixture is None else config.data.mixture[name].weight
            yield MixturePart(name, windows, fingerprint, tuple(weights.items()))

    def reader(self, ranks: Ranks, progress: Progress) -> StepReader:
        from pretrain.corpus import BatchReader

        train = self._config.train
        return BatchReader(
            self.samples,
            global_batch=train.global_batch,
            micro_batch=train.micro_batch,
            rank=ranks.rank,
            world_size=ranks.size,
            start_step=progress.step,
            stop_step=train.steps,
            read_ahead=self._config.data.read_ahead,
        )

    def epochs(self, progress: Progress) -> dict[str, float]:
        return self.samples.epochs(progress.step * self._config.train.global_batch)

    def place(self, sample: int) -> Record:
        plan = self.samples.plan(np.array([sample]))
        part = self.samples.parts[int(plan.source[0])].name
        return {"corpus": part, "window": int(plan.window[0]), "epoch": int(plan.epoch[0])}


class StreamedData(CorpusData):
    """A data set read through `datasets`; its held-out text is a prepared corpus in the run folder."""

    def reader(self, ranks: Ranks, progress: Progress) -> StepReader:
        from pretrain.corpus.direct import DirectReader

        config, train = self._config, self._config.train
        assert config.data.stream is not None
        [validation] = self.corpora.values()
        reader = DirectReader(
            config.data.stream,
            validation.tokenizer(),
            context=config.context,
            latents=config.latents,
            segments=config.data.segments,
            global_batch=train.global_batch,
            micro_batch=train.micro_batch,
            rank=ranks.rank,
            world_size=ranks.size,
            start_step=progress.step,
            stop_step=train.steps,
            read_ahead=config.data.read_ahead,
            states=progress.data_state,
        )
        if ranks.is_main and reader.reads_per_file > 1:
            print(
                f"data.stream     has fewer files than streams: each is read {reader.reads_per_file} times an epoch; "
                "lower data.stream.streams or prepare the data set"
            )
        return reader

    def epochs(self, progress: Progress) -> dict[str, float]:
        states = (progress.data_state or {}).values()
        return {"stream": fmean(state["epochs"] for state in states)} if states else {}

    def place(self, sample: int) -> Record:
        batch = self._config.train.global_batch
        assert self._config.data.stream is not None
        return {"stream": sample % batch * self._config.data.stream.streams // batch}


def open_data(config: CorpusRunConfig, ranks: Ranks) -> PreparedData | StreamedData:
    """The data of a run; rank 0 writes the held-out text of a streamed data set first. Collective.

    Raises InputError on every rank.
    """
    if config.data.stream is not None:
        from pretrain.corpus.direct import write_validation

        held_out = config.run.dir / VALIDATION_FOLDER
        ranks.while_waiting(partial(write_validation, config.data.stream, held_out, Console(stderr=True)))
    return ranks.together(lambda: PreparedData(config) if config.data.stream is None else StreamedData(config))


def open_corpora(config: CorpusRunConfig) -> dict[str, Corpus]:
    """The corpora a run names, by name: a single one is called as its folder is.

    Raises InputError where one is missing or damaged, or their tokenizers differ.
    """
    if config.data.copy_task is not None:
        return {COPY: CopyCorpus(config.data.copy_task)}
    corpora = {}
    cache = shard_cache(config.data.cache, *(location for _, location in corpus_locations(config).values()))
    for name, (field, location) in corpus_locations(config).items():
        try:
            corpora[name] = open_corpus(location, cache)
        except InputError as error:
            raise type(error)(f"{field}: {error}") from error
    _check_tokenizers(config, corpora)
    return corpora


def shard_cache(settings: CacheSection, *locations: str) -> ShardCache | None:
    """Where the shards of corpora go that are URLs: one for them all, which share its room; None if all are local."""
    if not any("://" in location for location in locations):
        return None
    folder = settings.dir or Path(tempfile.gettempdir(), f"perceiver-ar-shards-{os.getuid()}")
    return ShardCache(folder, math.floor(settings.max_gib * 2**30))


def corpus_locations(config: CorpusRunConfig) -> dict[str, tuple[str, str]]:
    """Name -> (field of the configuration, folder or URL; of what is made up, what it is)."""
    data = config.data
    if data.copy_task is not None:
        return {COPY: ("data.copy_task", "the copy task")}
    if data.corpus is not None:
        return {data.corpus.rstrip("/").rpartition("/")[2]: ("data.corpus", data.corpus)}
    if data.mixture is not None:
        return {name: (f"data.mixture.{name}.corpus", part.corpus) for name, part in data.mixture.items()}
    return {VALIDATION_FOLDER: ("data.stream", str(config.run.dir / VALIDATION_FOLDER))}


def mixture_weights(config: CorpusRunConfig, step: int) -> dict[str, float]:
    """Share of each corpus in the samples of a step, by name; they add up to 1."""
    if config.data.mixture is None:
        return dict.fromkeys(corpus_locations(config), 1.0)
    at_step = {name: part.weight_at(step) for name, part in config.data.mixture.items()}
    return {name: weight / sum(at_step.values()) for name, weight in at_step.items()}


def tokens_per_byte(corpora: dict[str, Corpus], split: str, weights: dict[str, float]) -> float:
    """Turns nats per token into nats per byte of text; `weights` are the corpora's shares of tokens, 1 in all."""
    bytes_per_token = 0.0
    for name, weight in weights.items():
        splits = corpora[name].manifest.splits
        entry = splits.get(split, splits["validation"])  # a streamed data set has no other text to count
        bytes_per_token += weight * entry.bytes / entry.tokens
    return 1 / bytes_per_token


def describe_data(corpora: dict[str, Corpus]) -> dict[str, Any]:
    """What a checkpoint remembers of its data."""
    manifest = next(iter(corpora.values())).manifest
    return {
        "fingerprints": {name: corpus.manifest.fingerprint for name, corpus in corpora.items()},
        "tokenizer": manifest.tokenizer,
        "tokenizer_hash": manifest.tokenizer_hash,
        "vocab_size": manifest.vocab_size,
        "end_id": manifest.end_id,
    }


def _check_tokenizers(config: CorpusRunConfig, corpora: dict[str, Corpus]) -> None:
    locations = corpus_locations(config)
    first, *others = corpora
    wanted = corpora[first].manifest
    for name in others:
        found = corpora[name].manifest
        if found.tokenizer_hash != wanted.tokenizer_hash:
            field, location = locations[name]
            raise InputError(
                f"{field}: {location} was prepared with tokenizer {found.tokenizer} ({found.tokenizer_hash}) and "
                f"{locations[first][1]} with {wanted.tokenizer} ({wanted.tokenizer_hash}); a mixture needs one"
            )
