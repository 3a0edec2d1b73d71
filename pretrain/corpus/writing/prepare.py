"""From sources to a corpus folder, in three phases that go on where an earlier attempt stopped.

What the work folder holds, all of it removed once the corpus is there:

- `collected/`: the text of every unit of a source, in runs sorted by hash; removed when everything is tokenized
- `<hash of the inputs>/tokenized/`: the tokens of every bucket, that is, of every range of hashes
- `<hash of the inputs>/corpus/`: the shards, as they are published
- `tmp/`: temporary files of all processes, such as copies of remote sources; of no use to another attempt

The disk holds the text and its tokens, then the tokens twice, whichever is more.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console

from pretrain.corpus.manifest import MANIFEST_FILE, Manifest, SourceEntry, SplitEntry
from pretrain.corpus.sources.unit import Unit
from pretrain.corpus.splits import threshold_for_both
from pretrain.corpus.stream import open_corpus
from pretrain.corpus.tokenizers import Tokenizer, load_tokenizer
from pretrain.corpus.writing.assemble import ShardPlan, assemble, plan_shards
from pretrain.corpus.writing.baselines import SAMPLE_BYTES, Baselines, start_measuring
from pretrain.corpus.writing.collect import Collected, collect, list_source_units, remove_other_units
from pretrain.corpus.writing.config import PrepareConfig
from pretrain.corpus.writing.corpus import finish_corpus
from pretrain.corpus.writing.files import write_tokenizer
from pretrain.corpus.writing.folder import keep_only, publish, remove_leftovers, temporary_files_in, work_folder
from pretrain.corpus.writing.hashes import fingerprint, hash_inputs
from pretrain.corpus.writing.shards import token_dtype
from pretrain.corpus.writing.tokenize import Plan, Selection, TokenizedBucket, first_text, tokenize
from pretrain.corpus.writing.units import RESULT, UnitResult, UnitRunner, file_sizes, read_result, write_result
from pretrain.corpus.writing.workers import Workers
from pretrain.errors import InputError

SPLITS = ("train", "validation")
TEMPORARY = "tmp"


@dataclass(frozen=True)
class WorkSizes:
    """How the work is cut, in bytes; the corpus does not depend on it."""

    run: int = 128 << 20
    """Documents a process holds in memory to sort them."""
    bucket: int = 64 << 20
    """Documents a process holds in memory to tokenize them."""
    process: int = 32 << 20
    """Text that takes longer to work through than a process to start."""


DEFAULT_SIZES = WorkSizes()


def prepare_corpus(config: PrepareConfig, console: Console, sizes: WorkSizes = DEFAULT_SIZES) -> tuple[Manifest, bool]:
    """Write the corpus folder `config.out`, or find that it holds this very corpus already.

    Returns:
        Its manifest, and whether it was written now.

    Raises:
        InputError: a source or the tokenizer is missing or bad, or `out` holds something else. If it is raised when
            units of the work are finished, they are kept beside `out`; before that, nothing is left behind.
    """
    existing = existing_manifest(config)
    listings = config.list_units()
    tokenizer = load_own_tokenizer(config)
    inputs = hash_inputs(config, listings, tokenizer)
    if existing is not None and existing.inputs == inputs:
        remove_leftovers(config.out, console)
        return existing, False
    with (
        work_folder(config.out, console) as folder,
        temporary_files_in(folder / TEMPORARY),
        Workers(count_processes(config)) as workers,
    ):
        existing = existing_manifest(config)  # once more: until now another process may have been writing it
        runner = UnitRunner(workers, console, sizes.process)
        preparation = _Preparation(config, listings, tokenizer, inputs, folder, runner, sizes)
        if existing is None:
            return preparation.write(), True
        # The files were touched, perhaps without changing a letter.
        unchanged = existing.inputs == inputs or preparation.fingerprint_of_sources() == existing.fingerprint
    if unchanged:
        return existing, False
    raise InputError(_other_corpus(config.out, "its sources have changed since"))


def count_processes(config: PrepareConfig) -> int:
    return config.processes or len(os.sched_getaffinity(0))


def load_own_tokenizer(config: PrepareConfig) -> Tokenizer:
    """Raises `InputError` if the tokenizer is missing or bad."""
    if config.tokenizer_training is not None and not Path(config.tokenizer).exists():
        raise InputError(
            f"tokenizer: there is no file {config.tokenizer}; "
            "train it with `prepare.py train-tokenizer --config ...` first"
        )
    return load_tokenizer(config.tokenizer, config.end_token)


def existing_manifest(config: PrepareConfig) -> Manifest | None:
    """The manifest of `out` if that is a corpus of this configuration, None if nothing is there.

    Raises:
        InputError: something else is there.
    """
    out = config.out
    if not (out / MANIFEST_FILE).is_file():
        if out.resolve().is_mount():
            raise InputError(f"out: {out} is a mount point, which no folder can take the place of; choose one in it")
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return None
        raise InputError(_other_corpus(out, "it is no corpus"))
    manifest = open_corpus(out).manifest
    if manifest.config != config.decisive():
        raise InputError(_other_corpus(out, "it was prepared with another configuration"))
    return manifest


def _other_corpus(out: Path, reason: str) -> str:
    return f"out: {out} exists and {reason}; choose another `out` or remove it"


class _TokenizedCorpus(UnitResult):
    """All that is needed of the first two phases."""

    buckets: list[TokenizedBucket]
    sources: list[SourceEntry]
    fingerprint: str


@dataclass(frozen=True)
class _Preparation:
    config: PrepareConfig
    listings: list[list[Unit]]
    tokenizer: Tokenizer
    inputs: str
    folder: Path
    runner: UnitRunner
    sizes: WorkSizes

    @property
    def _work(self) -> Path:
        """For what depends on all of the inputs."""
        return self.folder / self.inputs

    @property
    def _collected(self) -> Path:
        return self.folder / "collected"

    @property
    def _sample(self) -> Path:
        return self._work / "sample.txt"

    @property
    def _dtype(self) -> Literal["uint16", "uint32"]:
        return token_dtype(self.tokenizer.vocab_size)

    @property
    def _shard_tokens(self) -> int:
        return max(1, int(self.config.shard_mib * 2**20) // np.dtype(self._dtype).itemsize)

    def fingerprint_of_sources(self) -> str:
        """The fingerprint of the corpus that would be written; takes 40 bytes a document in memory."""
        selection, _ = self._select()
        buckets = [selection.rows(bucket) for bucket in range(selection.buckets)]
        rows = {split: [bucket[split] for bucket in buckets] for split in SPLITS}
        splits = {split: (sum(map(len, rows[split])), rows[split]) for split in SPLITS}
        return fingerprint(self.tokenizer, self._shard_tokens, splits)

    def write(self) -> Manifest:
        """Write the corpus folder."""
        keep_only(self.folder, [self._collected.name, self._work.name, TEMPORARY])
        tokenized, baselines = self._tokenize()
        shutil.rmtree(self._collected, ignore_errors=True)
        corpus = self._work / "corpus"
        corpus.mkdir(exist_ok=True)
        splits = self._assemble(tokenized, corpus)
        splits["validation"] = splits["validation"].model_copy(update={"baselines": baselines.result()})
        manifest = finish_corpus(
            corpus,
            self.tokenizer,
            splits,
            shard_tokens=self._shard_tokens,
            fingerprint=tokenized.fingerprint,
            inputs=self.inputs,
            licence=" AND ".join(sorted({source.licence for source in self.config.sources})),
            sources=tokenized.sources,
            config=self.config.decisive(),
        )
        publish(corpus, self.config.out)
        return manifest

    def _select(self) -> tuple[Selection, list[Collected]]:
        """The first phase."""
        units = list_source_units(self._collected, self.config.sources, self.listings)
        remove_other_units(self._collected, units)
        collected = collect(units, self.runner, self.sizes.run)
        smallest = min((unit.smallest_side for unit in collected), default=0)
        largest = max((unit.largest_side for unit in collected), default=0)
        if smallest >= largest:
            keep_only(self.folder, [])  # going on would lead here again
            raise InputError(
                f"sources: {sum(unit.documents for unit in collected)} documents with text, all of them equal; "
                "train and validation need at least one each: cut the text into more documents"
            )
        selection = Selection(
            runs=tuple(unit.run(n) for unit, result in zip(units, collected, strict=True) for n in range(result.runs)),
            buckets=-(-sum(unit.memory_bytes for unit in collected) // self.sizes.bucket),
            threshold=threshold_for_both(self.config.validation_fraction, smallest, largest),
            deduplicate=self.config.deduplicate,
        )
        return selection, collected

    def _tokenize(self) -> tuple[_TokenizedCorpus, Future[Baselines]]:
        """The first two phases; the baselines are measured during the later ones."""
        path = self._work / f"tokenized{RESULT}"
        if (finished := read_result(path, _TokenizedCorpus)) is not None:
            return finished, start_measuring(self._sample.read_bytes())
        selection, collected = self._select()
        plan = self._plan(selection)
        sample = first_text(selection, "validation", SAMPLE_BYTES)
        baselines = start_measuring(sample)
        text_bytes = sum(unit.text_bytes for unit in collected)
        buckets = tokenize(plan, text_bytes, self.runner)
        self._sample.write_bytes(sample)
        parts = {f"{plan.folder.name}/{name}": size for bucket in buckets for name, size in bucket.files.items()}
        documents = {split: _documents(plan, buckets, split) for split in SPLITS}
        result = _TokenizedCorpus(
            text_bytes=text_bytes,
            files=parts | file_sizes([self._sample]),
            buckets=buckets,
            sources=self._sources(collected, buckets),
            fingerprint=fingerprint(self.tokenizer, self._shard_tokens, documents),
        )
        write_result(path, result)
        return result, baselines

    def _plan(self, selection: Selection) -> Plan:
        saved = self._work / "tokenizer"
        saved.mkdir(parents=True, exist_ok=True)
        write_tokenizer(self.tokenizer, saved)
        return Plan(
            folder=self._work / "tokenized",
            selection=selection,
            sources=len(self.config.sources),
            dtype=self._dtype,
            tokenizer_folder=saved,
            tokenizer_name=self.tokenizer.name,
            end_id=self.tokenizer.end_id,
        )

    def _sources(self, collected: list[Collected], buckets: list[TokenizedBucket]) -> list[SourceEntry]:
        kept = np.sum([bucket.source_documents for bucket in buckets], axis=0).tolist()
        kept_bytes = np.sum([bucket.source_bytes for bucket in buckets], axis=0).tolist()
        entries = []
        results = iter(collected)
        for number, (source, units) in enumerate(zip(self.config.sources, self.listings, strict=True)):
            entry = SourceEntry(
                kind=source.kind,
                revision=source.state,
                licence=source.licence,
                files=sum(len(unit.files) for unit in units),
                documents=kept[number],
                duplicates=sum(next(results).documents for _ in units) - kept[number],
                bytes=kept_bytes[number],
            )
            entries.append(entry)
        return entries

    def _assemble(self, tokenized: _TokenizedCorpus, corpus: Path) -> dict[str, SplitEntry]:
        """The third phase."""
        plans: list[ShardPlan] = []
        for split in SPLITS:
            parts = [
                (bucket.part(self._work / "tokenized", split), bucket.tokens[split]) for bucket in tokenized.buckets
            ]
            plans += plan_shards(corpus, split, parts, self._dtype, self._shard_tokens)
        return assemble(plans, sum(source.bytes for source in tokenized.sources), self.runner)


def _documents(plan: Plan, buckets: Sequence[TokenizedBucket], split: str) -> tuple[int, Iterator[np.ndarray]]:
    """The number of a split's documents, and their records, a bucket at a time."""
    records = (bucket.part(plan.folder, split).documents() for bucket in buckets)
    return sum(bucket.documents[split] for bucket in buckets), records
