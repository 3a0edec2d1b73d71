"""The text of a data set out of `datasets`, from any place on, over connections that break."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import datasets
import httpx
import pyarrow as pa
import xxhash

from pretrain.corpus.download import http_options, open_file_system, silence_hub
from pretrain.corpus.sources.columns import BATCH_ROWS, check_column
from pretrain.corpus.sources.dataset import TextDataset
from pretrain.errors import InputError, Unavailable

STALL_SECONDS = 60.0
"""Without a byte from a web server, after which a connection is lost. The Hub's own client has limits of its own."""
RETRY_WAITS = (1, 2, 5, 10, 20, 40, 60, 60, 60)
"""Seconds before each new try after the connection was lost."""


@dataclass(frozen=True)
class TextRows:
    """Neighbouring rows of one group of a file."""

    group: int
    first: int
    """Place of the first row in its group."""
    texts: list[bytes]
    """UTF-8; empty where the field is null."""


class StreamedText:
    """The text of one split, file by file.

    A place in a file is a group and a row in it. Parquet's row groups are read one by one, so that reading can begin
    at any; other files are one group, and everything before a place in it is read and left out.

    A lost connection is made anew and reading goes on at the very row, up to `len(RETRY_WAITS)` times in a row.

    Raises:
        InputError: there is no such data set, configuration, split or file, or none can be reached.
    """

    def __init__(self, dataset: TextDataset, stop: threading.Event | None = None):
        """`stop`, once set, ends waiting for a lost connection."""
        self._field = dataset.field
        self._field_error = f"{dataset.where}field: {dataset.dataset}"
        self._cannot_open = f"{dataset.where}dataset: cannot open {dataset.dataset}"
        self._stop = threading.Event() if stop is None else stop
        try:
            builder = find_builder(dataset)
            rows = builder.as_streaming_dataset(split=dataset.split)
        except InputError:
            raise
        except Exception as error:  # `datasets` has no common base of what it raises
            raise InputError(f"{self._cannot_open}: {_reason(error)}") from error
        columns = rows.column_names
        if columns is not None and self._field not in columns:
            raise InputError(f"{self._field_error}: has no column {self._field!r}; there are {', '.join(columns)}")
        self._rows = rows.select_columns(self._field)
        self.files: int = rows.num_shards
        of_splits = builder.config.data_files
        listed = [of_splits[dataset.split]] if dataset.split in of_splits else list(of_splits.values())
        self._paths = [str(path) for paths in listed for path in paths]
        self.names = [path if "://" in path else Path(path).name for path in self._paths]
        """Of the files: on the Hub with the commit, local ones without folder, so that they may move together."""
        self.revision: str = builder.hash if builder.repo_id else ""
        """The commit on the Hub; empty for other data."""
        metadata = [paths.origin_metadata for paths in listed]
        self.version = self.revision or xxhash.xxh64_hexdigest(repr((self.names, metadata)).encode())
        """The commit or, for other data, what differs whenever its files' names, times of change or ETags do."""

    def sizes(self) -> list[int]:
        """Bytes of each file as stored, 0 where a server does not say; where shards are not files, shares of them all.

        Raises:
            InputError: a file cannot be reached.
        """
        try:
            sizes = [system.size(path) or 0 for system, path in map(open_file_system, self._paths)]
        except Exception as error:  # see above
            raise InputError(f"{self._cannot_open}: {_reason(error)}") from error
        return sizes if len(sizes) == self.files else [sum(sizes) // self.files] * self.files

    def rows(self, file: int, group: int = 0, row: int = 0) -> Iterator[TextRows]:
        """All rows of file number `file` from a place on.

        Raises:
            InputError: the file cannot be read, or has no text in `field`.
        """
        lost = 0
        while True:
            try:
                for rows in self._read(file, group, row):
                    yield rows
                    group, row, lost = rows.group, rows.first + len(rows.texts), 0
                return
            except InputError:
                raise
            except Exception as error:  # see above
                if not _is_lost_connection(error):
                    raise InputError(f"{self.place(file, group, row)}: cannot be read ({_reason(error)})") from error
                if lost == len(RETRY_WAITS) or self._stop.wait(RETRY_WAITS[lost]):
                    where = self.place(file, group, row)
                    raise Unavailable(
                        f"{where}: cannot be reached ({_reason(error)}), tried {lost + 1} times"
                    ) from error
                lost += 1

    def place(self, file: int, group: int, row: int) -> str:
        """What people know a row by."""
        name = self.names[file] if len(self.names) == self.files else f"file {file + 1} of {self.files}"
        return f"{name}, {f'row group {group}, ' if group else ''}row {row}"

    def _read(self, file: int, group: int, row: int) -> Iterator[TextRows]:
        groups = self._rows.shard(num_shards=self.files, index=file).reshard()
        for number in range(group, groups.num_shards):
            at = 0
            tables = groups.shard(num_shards=groups.num_shards, index=number).with_format("arrow")
            for table in tables.iter(batch_size=BATCH_ROWS):
                skipped = min(max(0, row - at), len(table))
                if skipped < len(table):
                    first = at + skipped
                    yield TextRows(number, first, self._texts(table.slice(skipped)))
                at += len(table)
            row = 0

    def _texts(self, table: pa.Table) -> list[bytes]:
        check_column(table.schema, self._field, self._field_error)
        column = table.column(self._field).cast(pa.large_string())
        column.validate(full=True)  # of UTF-8
        return [text or b"" for text in column.cast(pa.large_binary()).to_pylist()]


def find_builder(dataset: TextDataset) -> Any:
    """The data set's builder. Raises InputError, or whatever `datasets` raises."""
    silence_hub()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # it logs an error, then raises it
    # Its own retries go on behind what a broken read had consumed already: in compressed files, text would be lost.
    datasets.config.STREAMING_READ_MAX_RETRIES = datasets.config.STREAMING_OPEN_MAX_RETRIES = 1
    datasets.config.STREAMING_READ_RETRY_INTERVAL = datasets.config.STREAMING_OPEN_RETRY_INTERVAL = 0
    name, data_files = dataset.dataset, dataset.data_files
    path = Path(name).absolute()
    if path.is_file():
        name, data_files = str(path.parent), (path.name,)
    elif path.exists() and (data_files is None or "/" in name):
        name = str(path)  # without files to read, not even `json` is the name of a format
    builder = datasets.load_dataset_builder(
        name,
        dataset.config,
        data_files=None if data_files is None else list(data_files),
        revision=dataset.revision,
        storage_options=dict.fromkeys(("http", "https"), http_options(STALL_SECONDS)),
    )
    if builder.config.data_files is None:
        raise ConnectionError("only the cache of `datasets` holds it, which may be another version than was asked for")
    if data_files is None and not path.exists() and builder.repo_id is None:
        raise InputError(f"{dataset.where}data_files: must name the {name} files to read")
    if builder.name == "parquet":
        builder.config.batch_size = BATCH_ROWS  # by default the rows of the first row group, which fails where it is 0
    return builder


def _is_lost_connection(error: BaseException | None) -> bool:
    # Both fsspec and `datasets` hide what happened behind other errors: a missing file, or one of another format.
    while error is not None:
        if isinstance(error, aiohttp.ClientResponseError):
            return error.status >= 500 or error.status in (408, 429)
        if isinstance(error, ConnectionError | TimeoutError | aiohttp.ClientError | httpx.TransportError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _reason(error: Exception) -> str:
    return " ".join([f"{type(error).__name__}:", *str(error).split()])[:300].removesuffix(":")
