"""Data sets that the `datasets` library knows how to load, streamed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import fsspec
import xxhash

from pretrain.corpus.sources.documents import Regex, join_rows
from pretrain.corpus.sources.files import Globs
from pretrain.corpus.sources.formats import BATCH_ROWS, check_column, text_rows
from pretrain.corpus.sources.remote import silence_hub
from pretrain.corpus.sources.unit import Document, SourceFile, Unit
from pretrain.errors import InputError
from pretrain.schema import Location, Section


class HubDataset(Section):
    """A data set of the Hugging Face Hub, or local data that `datasets` can load, streamed shard by shard.

    Every row is a document, or a part of one (`document_start`); rows whose field is null or empty are left out.
    """

    kind: Literal["hub"]
    dataset: Location
    """Its name on the Hub, a local folder, or with `data_files` a format of `datasets` (`csv`, `json`, `text`, ...)."""
    config: str | None = None
    """Which of the data set's configurations; needed where it has several."""
    split: str = "train"
    data_files: Globs | None = None
    """Read these files only; patterns relative to the data set."""
    version: str | None = None
    """A branch, tag or commit on the Hub; by default the newest commit of its main branch."""
    field: str = "text"
    document_start: Regex | None = None
    """Rows whose beginning matches this regular expression begin a new document, the others are appended to the one
    before; a document ends with its shard."""
    licence: str = "unknown"

    @property
    def revision(self) -> str:
        """The commit that is read; empty for local data."""
        return _commit(self.dataset, self.version) if self._is_on_hub() else ""

    def units(self) -> list[Unit]:
        commit = self.revision
        loaded = self._load(commit)
        location = f"{self.dataset}@{commit}" if commit else self.dataset
        count = len(loaded.sizes)
        names = [f"{self.split}/{number:05d}-of-{count:05d}" for number in range(count)]
        return [
            Unit((SourceFile(name, f"{location}/{name}", size, commit or loaded.state),))
            for name, size in zip(names, loaded.sizes, strict=True)
        ]

    def documents(self, unit: Unit) -> Iterator[Document]:
        for shard in unit.files:
            yield from join_rows(self._rows(shard), shard, self.document_start)

    def _rows(self, shard: SourceFile) -> Iterator[tuple[int, bytes]]:
        # A unit names the commit it was listed at, so that every process reads that one.
        shards = self._load(shard.version if self._is_on_hub() else "").shards
        number = int(shard.id.rpartition("/")[2].partition("-")[0])
        tables = shards.shard(shards.num_shards, number).with_format("arrow").iter(BATCH_ROWS)
        yield from text_rows(_checked_batches(tables, self.field, shard), self.field, shard)

    def _load(self, commit: str) -> _Loaded:
        return _load(self.dataset, self.config, self.split, self.data_files, commit or None)

    def _is_on_hub(self) -> bool:
        is_format = self.data_files is not None and "/" not in self.dataset
        return not is_format and not os.path.exists(self.dataset)


def _checked_batches(tables: Iterator[Any], field: str, shard: SourceFile) -> Iterator[Any]:
    try:
        for table in tables:
            check_column(table.schema, field, shard.path)
            yield from table.to_batches()
    except InputError:
        raise
    except Exception as error:  # of any of the packages under `datasets`
        raise InputError(f"{shard.path}: cannot be read ({_describe(error)})") from error


@lru_cache(maxsize=8)
def _commit(dataset: str, version: str | None) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    silence_hub()
    try:
        return str(HfApi().dataset_info(dataset, revision=version).sha)
    except RevisionNotFoundError as error:
        raise InputError(f"sources: data set {dataset} has no branch, tag or commit {version!r}") from error
    except RepositoryNotFoundError as error:
        reason = "is not a folder here, and on the Hub it does not exist or needs a login that allows it"
        raise InputError(f"sources: data set {dataset} {reason}") from error
    except Exception as error:  # names that are none, and all that can go wrong with a network
        raise InputError(f"sources: data set {dataset}: the Hub has no answer ({_describe(error)})") from error


class _Loaded(NamedTuple):
    shards: Any
    """The `IterableDataset`."""
    sizes: list[int]
    """Bytes of each shard as stored; where it is not one file, its share of them all."""
    state: str
    """Differs whenever the files may differ: their times of change, ETags or commits."""


@lru_cache(maxsize=8)
def _load(
    dataset: str, config: str | None, split: str, data_files: tuple[str, ...] | None, version: str | None
) -> _Loaded:
    """Listing the files of a data set takes seconds, hence once in a process."""
    import datasets

    silence_hub()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # it logs an error, then raises it
    files = list(data_files) if data_files is not None else None
    try:
        builder = datasets.load_dataset_builder(dataset, config, data_files=files, revision=version)
        shards = builder.as_streaming_dataset(split)
        listed = (builder.config.data_files or {}).get(split)
        sizes = [_size(url) for url in listed or []]
    except Exception as error:  # of any of the packages under `datasets`
        raise InputError(f"sources: data set {dataset}: {_describe(error)}") from error
    if len(sizes) != shards.num_shards:
        sizes = [sum(sizes) // shards.num_shards] * shards.num_shards
    return _Loaded(shards, sizes, xxhash.xxh64_hexdigest(repr(listed.origin_metadata).encode()) if listed else "")


def _size(url: str) -> int:
    system, path = fsspec.core.url_to_fs(url)
    return system.size(path) or 0


def _describe(error: Exception) -> str:
    return " ".join([type(error).__name__ + ":", *str(error).split()])[:300]
