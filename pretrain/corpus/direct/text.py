"""Rows of text out of `datasets`, from any place on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import aiohttp
import datasets
import httpx
import pyarrow as pa

from pretrain.corpus.direct.config import StreamConfig
from pretrain.corpus.sources.formats import check_column
from pretrain.corpus.sources.remote import silence_hub
from pretrain.errors import InputError

BATCH_ROWS = 256
"""Rows taken from `datasets` at once: few, for rows can be whole books."""
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

    def __init__(self, config: StreamConfig, stop: threading.Event | None = None):
        """`stop`, once set, ends waiting for a lost connection."""
        self._config = config
        self._stop = threading.Event() if stop is None else stop
        try:
            builder = _find(config)
            dataset = builder.as_streaming_dataset(split=config.split)
        except InputError:
            raise
        except Exception as error:  # `datasets` has no common base of what it raises
            raise InputError(f"data.stream: cannot open {config.dataset}: {_reason(error)}") from error
        columns = dataset.column_names
        if columns is not None and config.field not in columns:
            raise InputError(
                f"data.stream.field: {config.dataset} has no column {config.field!r}; there are {', '.join(columns)}"
            )
        self._dataset = dataset.select_columns(config.field)
        self.files: int = dataset.num_shards
        self.revision: str = builder.hash if builder.repo_id else ""
        """The commit on the Hub; empty for other data."""
        of_splits = builder.config.data_files
        names = of_splits[config.split] if config.split in of_splits else chain.from_iterable(of_splits.values())
        self.names = [name if "://" in name else Path(name).name for name in map(str, names)]
        """Of the files: on the Hub with the commit, local ones without folder, so that they may move together."""

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
                    raise InputError(
                        f"{where}: cannot be reached ({_reason(error)}), tried {lost + 1} times"
                    ) from error
                lost += 1

    def place(self, file: int, group: int, row: int) -> str:
        """What people know a row by."""
        name = self.names[file] if len(self.names) == self.files else f"file {file + 1} of {self.files}"
        return f"{name}, {f'row group {group}, ' if group else ''}row {row}"

    def _read(self, file: int, group: int, row: int) -> Iterator[TextRows]:
        groups = self._dataset.shard(num_shards=self.files, index=file).reshard()
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
        field = self._config.field
        check_column(table.schema, field, f"data.stream.field: {self._config.dataset}")
        column = table.column(field).cast(pa.large_string())
        column.validate(full=True)  # of UTF-8
        return [text or b"" for text in column.cast(pa.large_binary()).to_pylist()]


def _find(config: StreamConfig) -> Any:
    """The data set's builder."""
    silence_hub()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # it logs an error, then raises it
    # Its own retries go on behind what a broken read had consumed already: in compressed files, text would be lost.
    datasets.config.STREAMING_READ_MAX_RETRIES = datasets.config.STREAMING_OPEN_MAX_RETRIES = 1
    datasets.config.STREAMING_READ_RETRY_INTERVAL = datasets.config.STREAMING_OPEN_RETRY_INTERVAL = 0
    name, data_files = config.dataset, config.data_files
    path = Path(name).expanduser().absolute()
    if path.is_file():
        name, data_files = str(path.parent), path.name
    elif path.exists() and (data_files is None or "/" in name):
        name = str(path)  # without files to read, not even `json` is the name of a format
    # By default aiohttp gives an answer five minutes in all, however well or badly it comes.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALL_SECONDS, sock_read=STALL_SECONDS)
    web = {"client_kwargs": {"timeout": timeout}}
    builder = datasets.load_dataset_builder(
        name,
        config.config,
        data_files=data_files,
        revision=config.revision,
        storage_options={"http": web, "https": web},
    )
    if data_files is None and not path.exists() and builder.repo_id is None:
        raise InputError(f"data.stream.data_files: must name the {name} files to read")
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
