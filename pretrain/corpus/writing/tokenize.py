"""The second phase: the documents of a bucket, deduplicated, split, tokenized and in their final order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pretrain.corpus.sources.unit import Document
from pretrain.corpus.tokenizers import Tokenizer, load_saved_tokenizer
from pretrain.corpus.writing.files import new_file
from pretrain.corpus.writing.runs import Run, first_of_equal, read_documents, read_rows
from pretrain.corpus.writing.shards import id_line
from pretrain.corpus.writing.units import RESULT, UnitResult, UnitRunner, WorkUnit, file_sizes
from pretrain.corpus.writing.workers import Report
from pretrain.errors import InputError
from pretrain.files import hash_file

ENCODED_BYTES = 4 << 20
"""Text handed to the tokenizer at once."""

PART_FILES = (".tokens", ".documents", ".ids")
PART_DOCUMENT = np.dtype([("end", "<u8"), ("text_bytes", "<u8"), ("side", "<u8"), ("place", "<u8")])
"""A document of a part: the place behind its end token, counted from the part's start, and its hash."""


@dataclass(frozen=True)
class Selection:
    """All that decides which documents the splits hold, and in which order."""

    runs: tuple[Run, ...]
    """In listing order."""
    buckets: int
    threshold: int
    """Of the sides: those below it are held out."""
    deduplicate: bool

    def rows(self, bucket: int) -> dict[str, np.ndarray]:
        """The rows of a bucket's documents, by split, in their final order."""
        return self.choose(read_rows(self.runs, bucket, self.buckets))

    def choose(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Of all rows of a bucket, those of each split."""
        if self.deduplicate:
            rows = first_of_equal(rows)
        validation = rows["side"] < self.threshold
        return {"train": rows[~validation], "validation": rows[validation]}


@dataclass(frozen=True)
class Plan:
    """What every process must know to tokenize any of the buckets."""

    folder: Path
    """For the parts."""
    selection: Selection
    sources: int
    dtype: str
    tokenizer_folder: Path
    """Holds the tokenizer's files: that is how another process gets it."""
    tokenizer_name: str
    end_id: int


class Part(NamedTuple):
    """A bucket's share of a split."""

    path: Path
    """With the `PART_FILES` added, its files."""
    hashes: tuple[str, ...] = ()
    """xxh64 of these, once they are written."""

    def file(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)

    def documents(self) -> np.ndarray:
        return np.fromfile(self.file(".documents"), dtype=PART_DOCUMENT)

    def hashed(self) -> Part:
        return self._replace(hashes=tuple(hash_file(self.file(suffix)) for suffix in PART_FILES))


@lru_cache(maxsize=64)
def check_part(part: Part) -> None:
    """Once in a process and for a part.

    Raises:
        InputError: it is not what was written.
    """
    for suffix, expected in zip(PART_FILES, part.hashes, strict=True):
        if hash_file(part.file(suffix)) != expected:
            raise InputError(f"{part.file(suffix)}: damaged; remove the folder {part.path.parent} and prepare again")


class TokenizedBucket(UnitResult):
    """What a bucket came to."""

    name: str
    tokens: dict[str, int]
    """By split, as the next."""
    documents: dict[str, int]
    hashes: dict[str, tuple[str, ...]]
    """Of the parts."""
    source_documents: list[int]
    """Kept, by source, as the next."""
    source_bytes: list[int]

    def part(self, folder: Path, split: str) -> Part:
        return Part(folder / f"{self.name}-{split}", self.hashes[split])


def tokenize(plan: Plan, text_bytes: int, runner: UnitRunner) -> list[TokenizedBucket]:
    """Tokenize the buckets, of `text_bytes` in all with duplicates, that are not tokenized yet."""
    buckets = plan.selection.buckets
    names = [f"{bucket:05d}-of-{buckets:05d}" for bucket in range(buckets)]
    work = [
        WorkUnit(
            plan.folder / f"{name}{RESULT}", 1 + text_bytes // buckets, partial(tokenize_bucket, plan, bucket, name)
        )
        for bucket, name in enumerate(names)
    ]
    return runner.finish("tokenizing", work, TokenizedBucket, text_bytes)


def tokenize_bucket(plan: Plan, bucket: int, name: str, report: Report) -> TokenizedBucket:
    """Write a bucket's part of each split."""
    runs = plan.selection.runs
    collected = read_rows(runs, bucket, plan.selection.buckets)
    splits = plan.selection.choose(collected)
    parts = {split: Part(plan.folder / f"{name}-{split}") for split in splits}
    tokens = {
        split: _write_part(plan, parts[split], rows, read_documents(runs, rows), report)
        for split, rows in splits.items()
    }
    rows = np.concatenate(list(splits.values()))
    sources = np.array([run.source for run in runs])[rows["run"]]
    source_bytes = np.bincount(sources, weights=rows["text_bytes"], minlength=plan.sources)
    text_bytes = int(collected["text_bytes"].sum())
    report(text_bytes - int(rows["text_bytes"].sum()))
    return TokenizedBucket(
        text_bytes=text_bytes,
        files=file_sizes(part.file(suffix) for part in parts.values() for suffix in PART_FILES),
        name=name,
        tokens=tokens,
        documents={split: len(rows) for split, rows in splits.items()},
        hashes={split: part.hashed().hashes for split, part in parts.items()},
        source_documents=np.bincount(sources, minlength=plan.sources).tolist(),
        source_bytes=source_bytes.astype(np.int64).tolist(),
    )


def _write_part(plan: Plan, part: Part, rows: np.ndarray, documents: Sequence[Document], report: Report) -> int:
    """Write the documents of `rows` in their order; returns the number of tokens."""
    tokenizer = _tokenizer(plan.tokenizer_folder, plan.tokenizer_name, plan.end_id)
    dtype = np.dtype(plan.dtype).newbyteorder("<")
    end = np.array([plan.end_id], dtype=dtype)
    lengths: list[int] = []
    with new_file(part.file(".tokens")) as file:
        for batch in _batches(documents):
            for ids in tokenizer.encode_batch([document.text for document in batch]):
                file.write(ids.astype(dtype).tobytes())
                file.write(end.tobytes())
                lengths.append(len(ids) + 1)
            report(sum(len(document.text) for document in batch))
    records = np.zeros(len(rows), dtype=PART_DOCUMENT)
    records["end"] = np.cumsum(lengths, dtype=np.uint64)
    for field in ("text_bytes", "side", "place"):
        records[field] = rows[field]
    with new_file(part.file(".documents")) as file:
        file.write(records.tobytes())
    with new_file(part.file(".ids")) as file:
        file.writelines(id_line(document.id) for document in documents)
    return sum(lengths)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= ENCODED_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@lru_cache(maxsize=1)
def _tokenizer(folder: Path, name: str, end_id: int) -> Tokenizer:
    return load_saved_tokenizer(folder, name, end_id)


def first_text(selection: Selection, split: str, size: int) -> bytes:
    """The split's first documents in their final order, joined, up to the one that makes it `size` bytes or more."""
    text = bytearray()
    for bucket in range(selection.buckets):
        rows = selection.rows(bucket)[split]
        enough = int(np.searchsorted(np.cumsum(rows["text_bytes"]), size - len(text))) + 1
        text += b"".join(document.text for document in read_documents(selection.runs, rows[:enough]))
        if len(text) >= size:
            break
    return bytes(text)
