"""Runs: documents on disk in the order of their hashes, so that a bucket, a range of hashes, is one slice of a run."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pretrain.corpus.sources.unit import Document
from pretrain.corpus.splits import content_hash, hash_halves
from pretrain.corpus.writing.files import new_file
from pretrain.errors import InputError

ROW = np.dtype(
    [
        ("place", "<u8"),
        ("side", "<u8"),
        ("offset", "<u8"),  # of the id in the run's text file; the text follows it
        ("text_bytes", "<u8"),
        ("id_bytes", "<u4"),
        ("run", "<u4"),  # which run of several, once their rows are put together
    ]
)
"""A document of a run's index, which is sorted by place, then side; equal texts stay in the order they were listed."""


class Run(NamedTuple):
    path: Path
    """`.text` and `.index` added are its files."""
    source: int

    @property
    def text_file(self) -> Path:
        return self.path.with_name(self.path.name + ".text")

    @property
    def index_file(self) -> Path:
        return self.path.with_name(self.path.name + ".index")


def write_run(run: Run, documents: Sequence[Document], digests: bytes) -> None:
    """Write documents, given in listing order with their concatenated `content_hash`es."""
    side, place = hash_halves(digests)
    order = np.lexsort((side, place))
    ids = [documents[number].id.encode() for number in order]
    texts = [documents[number].text for number in order]
    rows = np.zeros(len(documents), dtype=ROW)
    rows["place"], rows["side"] = place[order], side[order]
    rows["id_bytes"], rows["text_bytes"] = list(map(len, ids)), list(map(len, texts))
    sizes = rows["id_bytes"] + rows["text_bytes"]
    rows["offset"] = np.cumsum(sizes) - sizes
    with new_file(run.text_file) as file:
        for id, text in zip(ids, texts, strict=True):
            file.write(id)
            file.write(text)
    with new_file(run.index_file) as file:
        file.write(rows.tobytes())


def read_rows(runs: Sequence[Run], bucket: int, buckets: int) -> np.ndarray:
    """The rows of all documents of a bucket: those of each run in turn, sorted, equal texts in listing order.

    Bucket b of n holds the places from b/n to (b+1)/n of all 2^64.
    """
    parts = []
    for number, run in enumerate(runs):
        index = np.memmap(run.index_file, dtype=ROW, mode="r")
        low = bisect_left(index["place"], (bucket << 64) // buckets)
        high = bisect_left(index["place"], (bucket + 1 << 64) // buckets) if bucket + 1 < buckets else len(index)
        rows = np.array(index[low:high])
        rows["run"] = number
        parts.append(rows)
    joined = np.concatenate(parts)
    return joined[np.lexsort((joined["side"], joined["place"]))]


def first_of_equal(rows: np.ndarray) -> np.ndarray:
    """Of sorted rows, those whose text no row before them has."""
    different = (rows["place"][1:] != rows["place"][:-1]) | (rows["side"][1:] != rows["side"][:-1])
    return rows[np.concatenate([[True], different])] if len(rows) else rows


def read_documents(runs: Sequence[Run], rows: np.ndarray) -> list[Document]:
    """The documents of the rows; equal texts are kept once in memory.

    Raises:
        InputError: a run is damaged.
    """
    if not len(rows):
        return []
    documents: list[Document] = [Document("", b"")] * len(rows)
    digests = [b""] * len(rows)
    texts: dict[bytes, bytes] = {}
    by_run = np.argsort(rows["run"], kind="stable")
    for numbers in np.split(by_run, np.flatnonzero(np.diff(rows["run"][by_run])) + 1):
        run = runs[rows["run"][numbers[0]]]
        for number, document in zip(numbers.tolist(), _read_slice(run, rows[numbers]), strict=True):
            digests[number] = digest = content_hash(document.text)
            documents[number] = Document(document.id, texts.setdefault(digest, document.text))
    side, place = hash_halves(b"".join(digests))
    for number in np.flatnonzero((side != rows["side"]) | (place != rows["place"])):
        damaged = runs[rows["run"][number]].text_file
        raise InputError(f"{damaged}: damaged; remove the folder {damaged.parent} and prepare again")
    return documents


def _read_slice(run: Run, rows: np.ndarray) -> Iterator[Document]:
    """The documents of rows of one run, in order."""
    texts = rows["offset"] + rows["id_bytes"]
    start, stop = int(rows["offset"][0]), int(texts[-1] + rows["text_bytes"][-1])
    with run.text_file.open("rb") as file:
        file.seek(start)
        data = file.read(stop - start)
    places = np.stack([rows["offset"], texts, texts + rows["text_bytes"]], axis=1) - np.uint64(start)
    for id_start, text_start, end in places.tolist():
        yield Document(data[id_start:text_start].decode(errors="replace"), data[text_start:end])
