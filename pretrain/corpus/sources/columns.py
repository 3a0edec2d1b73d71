"""Columns of text in Arrow tables, and in the files that hold such tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pretrain.corpus.sources.documents import utf8_error
from pretrain.corpus.sources.unit import SourceFile
from pretrain.errors import InputError

BATCH_ROWS = 256
"""Rows of a column read at once: whole books must fit."""


def parquet_rows(path: Path, field: str, file: SourceFile) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and text of the rows of a Parquet file with text in them."""
    with pq.ParquetFile(path) as table:
        check_column(table.schema_arrow, field, file.path)
        yield from _text_rows(table.iter_batches(BATCH_ROWS, columns=[field]), field, file)


def arrow_rows(path: Path, field: str, file: SourceFile) -> Iterator[tuple[int, bytes]]:
    """Number, from 1, and text of the rows of an Arrow IPC file, of either format, with text in them."""
    with pa.memory_map(str(path)) as content:
        if content.read(6) == b"ARROW1":
            table = pa.ipc.open_file(content)
            batches: Iterable[pa.RecordBatch] = map(table.get_batch, range(table.num_record_batches))
        else:
            # Only this mark tells a whole stream from one cut off between two of its batches.
            content.seek(max(0, content.size() - 8))
            if content.read() != b"\xff\xff\xff\xff\0\0\0\0":
                raise EOFError("no end-of-stream mark")
            content.seek(0)
            table = batches = pa.ipc.open_stream(content)
        check_column(table.schema, field, file.path)
        yield from _text_rows(batches, field, file)


def check_column(schema: pa.Schema, field: str, place: str) -> None:
    """Raises `InputError`, which begins with `place`, where there is no such column or it does not hold text."""
    if schema.get_field_index(field) < 0:
        raise InputError(f"{place}: has no column {field!r}; there are {', '.join(schema.names)}")
    kind = schema.field(field).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise InputError(f"{place}: column {field!r} is {kind}, not text")


def _text_rows(batches: Iterable[pa.RecordBatch], field: str, file: SourceFile) -> Iterator[tuple[int, bytes]]:
    number = 0
    for batch in batches:
        for text in batch.column(field).cast(pa.large_binary()).to_pylist():
            number += 1
            if text and (error := utf8_error(text)):
                raise InputError(f"{file.path}:{number}: column {field!r} is not valid Unicode ({error})")
            if text:
                yield number, text
