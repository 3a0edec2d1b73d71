"""The first phase: documents of all sources into runs, a unit of a source at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import xxhash
from pydantic import NonNegativeInt

from pretrain.corpus.manifest import FORMAT, VERSION
from pretrain.corpus.sources import Source
from pretrain.corpus.sources.unit import Document, Unit
from pretrain.corpus.splits import content_hash, hash_halves
from pretrain.corpus.writing.runs import Run, write_run
from pretrain.corpus.writing.units import RESULT, UnitResult, UnitRunner, WorkUnit, file_sizes
from pretrain.corpus.writing.workers import Report

OBJECT_BYTES = 256
"""What Python adds to a document in memory; without it, millions of short ones would not be bounded."""

NO_SIDES = (2**64, -1)
"""Smallest and largest of none."""


class Collected(UnitResult):
    """What one unit of a source held; empty documents are left out."""

    runs: NonNegativeInt
    documents: NonNegativeInt
    memory_bytes: NonNegativeInt
    """What the documents take in memory."""
    smallest_side: int
    """Of the first halves of the hashes."""
    largest_side: int


class SourceUnit:
    """A unit of a source, named by all that decides what is read from it."""

    def __init__(self, folder: Path, number: int, source: Source, unit: Unit):
        self.source_number = number
        self.source = source
        self.unit = unit
        files = [(file.id, file.bytes, file.version) for file in unit.files]
        settings = source.model_dump(mode="json", exclude={"licence"})
        described = [FORMAT, VERSION, settings, source.state, files]
        self.path = folder / xxhash.xxh3_128_hexdigest(json.dumps(described, sort_keys=True).encode())

    def run(self, number: int) -> Run:
        return Run(self.path.with_name(f"{self.path.name}-{number:04d}"), self.source_number)


def list_source_units(folder: Path, sources: Sequence[Source], listings: Sequence[Sequence[Unit]]) -> list[SourceUnit]:
    """In listing order: of equal texts, the first in this order is kept."""
    return [
        SourceUnit(folder, number, source, unit)
        for number, (source, units) in enumerate(zip(sources, listings, strict=True))
        for unit in units
    ]


def collect(units: Sequence[SourceUnit], runner: UnitRunner, run_bytes: int) -> list[Collected]:
    """Read the units that are not collected yet into runs of at most `run_bytes` of memory or one document.

    Raises:
        InputError: a source is bad.
    """
    work = [
        WorkUnit(
            unit.path.with_suffix(RESULT), max(1, unit.unit.expected_bytes), partial(collect_unit, unit, run_bytes)
        )
        for unit in units
    ]
    return runner.finish("reading", work, Collected)


def remove_other_units(folder: Path, units: Sequence[SourceUnit]) -> None:
    """Remove what was collected from files that have changed or are no longer wanted."""
    wanted = {unit.path.name for unit in units}
    for path in folder.iterdir() if folder.exists() else ():
        if path.stem.partition("-")[0] not in wanted:
            path.unlink()


def collect_unit(unit: SourceUnit, run_bytes: int, report: Report) -> Collected:
    """Read one unit's documents into runs, the listing order running on from one to the next."""
    writer = _RunWriter(unit, run_bytes)
    for document in unit.source.documents(unit.unit):
        report(len(document.text))
        if document.text:
            writer.add(document)
    return writer.close()


class _RunWriter:
    def __init__(self, unit: SourceUnit, run_bytes: int):
        self._unit = unit
        self._run_bytes = run_bytes
        self._runs = self._documents = self._text_bytes = self._memory_bytes = 0
        self._smallest, self._largest = NO_SIDES
        self._begin()

    def _begin(self) -> None:
        self._waiting: list[Document] = []
        self._digests = bytearray()
        self._waiting_bytes = 0

    def add(self, document: Document) -> None:
        self._waiting.append(document)
        self._digests += content_hash(document.text)
        self._text_bytes += len(document.text)
        self._waiting_bytes += len(document.text) + len(document.id) + OBJECT_BYTES
        if self._waiting_bytes >= self._run_bytes:
            self._write()

    def close(self) -> Collected:
        if self._waiting:
            self._write()
        return Collected(
            text_bytes=self._text_bytes,
            files=file_sizes(
                path
                for number in range(self._runs)
                for path in (self._unit.run(number).text_file, self._unit.run(number).index_file)
            ),
            runs=self._runs,
            documents=self._documents,
            memory_bytes=self._memory_bytes,
            smallest_side=self._smallest,
            largest_side=self._largest,
        )

    def _write(self) -> None:
        digests = bytes(self._digests)
        write_run(self._unit.run(self._runs), self._waiting, digests)
        sides, _ = hash_halves(digests)
        self._smallest = min(self._smallest, int(sides.min()))
        self._largest = max(self._largest, int(sides.max()))
        self._runs += 1
        self._documents += len(self._waiting)
        self._memory_bytes += self._waiting_bytes
        self._begin()
