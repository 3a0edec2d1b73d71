"""The data of a run: what it trains on, and the texts it is validated on."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console

from pretrain.config import CacheSection, RunConfig
from pretrain.corpus import Corpus, MixturePart, SampleSequence, ShardCache, open_corpus, order_key
from pretrain.corpus.copying import COPY, CopyCorpus
from pretrain.errors import InputError

if TYPE_CHECKING:  # they import torch: bad input is not to wait for it
    from pretrain.corpus.reader import StepReader
    from pretrain.distributed import Ranks
    from pretrain.progress import Progress

VALIDATION_FOLDER = "validation"
"""In the run folder: the held-out text of a data set that is streamed."""


class TrainingData(Protocol):
    """What the loop knows of its data."""

    corpora: dict[str, Corpus]
    """By name. Whatever is trained on, their `validation` splits are what it is validated on."""

    def reader(self, ranks: Ranks, progress: Progress) -> StepReader:
        """One rank's batches from the step after `progress`."""

    def epochs(self, progress: Progress) -> dict[str, float]:
        """How often each corpus has been read; of streams, the whole times, on average."""


class PreparedData:
    """Data with a window for every number: one corpus, or a mixture of several."""

    def __init__(self, config: RunConfig) -> None:
        """Raises InputError where a corpus is missing or damaged, or they do not go together."""
        self._config = config
        self.corpora = open_corpora(config)
        self.samples = SampleSequence(list(self._parts()), seed=config.run.seed, global_batch=config.train.global_batch)

    def _parts(self) -> Iterator[MixturePart]:
        config, model = self._config, self._config.model
        for name, corpus in self.corpora.items():
            fingerprint = corpus.manifest.fingerprint
            windows = corpus.training_windows(
                config.data.windows,
                context=model.max_seq_len,
                latents=model.max_latents,
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


class StreamedData:
    """A data set read through `datasets`; its held-out text is a prepared corpus in the run folder."""

    def __init__(self, config: RunConfig) -> None:
        """Raises InputError where the held-out text has not been written or is damaged."""
        self._config = config
        self.corpora = open_corpora(config)

    def reader(self, ranks: Ranks, progress: Progress) -> StepReader:
        from pretrain.corpus.direct import DirectReader

        config, train = self._config, self._config.train
        assert config.data.stream is not None
        [validation] = self.corpora.values()
        reader = DirectReader(
            config.data.stream,
            validation.tokenizer(),
            context=config.model.max_seq_len,
            latents=config.model.max_latents,
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


def open_data(config: RunConfig, ranks: Ranks) -> TrainingData:
    """The data of a run; rank 0 writes the held-out text of a streamed data set first. Collective.

    Raises InputError on every rank, also where they have different data.
    """
    if config.data.stream is not None:
        from pretrain.corpus.direct import write_validation

        held_out = config.run.dir / VALIDATION_FOLDER
        ranks.while_waiting(partial(write_validation, config.data.stream, held_out, Console(stderr=True)))
    from pretrain.distributed import RanksError

    data = ranks.together(lambda: PreparedData(config) if config.data.stream is None else StreamedData(config))
    of_ranks = ranks.gather(describe_data(data.corpora))
    for rank, described in enumerate(of_ranks):
        if described != of_ranks[0]:
            raise RanksError(
                f"data: rank {rank} has other corpora ({described['fingerprints']}) than rank 0 "
                f"({of_ranks[0]['fingerprints']}): make them the same on every node"
            )
    return data


def open_corpora(config: RunConfig) -> dict[str, Corpus]:
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


def corpus_locations(config: RunConfig) -> dict[str, tuple[str, str]]:
    """Name -> (field of the configuration, folder or URL; of what is made up, what it is)."""
    data = config.data
    if data.copy_task is not None:
        return {COPY: ("data.copy_task", "the copy task")}
    if data.corpus is not None:
        return {data.corpus.rstrip("/").rpartition("/")[2]: ("data.corpus", data.corpus)}
    if data.mixture is not None:
        return {name: (f"data.mixture.{name}.corpus", part.corpus) for name, part in data.mixture.items()}
    return {VALIDATION_FOLDER: ("data.stream", str(config.run.dir / VALIDATION_FOLDER))}


def mixture_weights(config: RunConfig, step: int) -> dict[str, float]:
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


def _check_tokenizers(config: RunConfig, corpora: dict[str, Corpus]) -> None:
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
