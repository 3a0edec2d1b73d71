"""What every source is made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

UNIT_BYTES = 32 << 20
"""Small files are read together up to this size."""


@dataclass(frozen=True)
class SourceFile:
    id: str
    """What people know it by: the path relative to the source, with forward slashes."""
    path: str
    """Local path or URL."""
    bytes: int | None
    """As stored; None where that cannot be known without reading it."""
    version: str
    """Differs whenever the content may differ: time of change, ETag, revision."""

    @property
    def expected_bytes(self) -> int:
        """A file of unknown size is taken for a large one: many of them are never read in one go."""
        return UNIT_BYTES if self.bytes is None else self.bytes


@dataclass(frozen=True)
class Unit:
    """Files of a source that one process reads in one go: what is redone if that process dies."""

    files: tuple[SourceFile, ...]

    @property
    def bytes(self) -> int:
        """As far as they are known."""
        return sum(file.bytes or 0 for file in self.files)

    @property
    def expected_bytes(self) -> int:
        return sum(file.expected_bytes for file in self.files)


@dataclass(frozen=True)
class Document:
    id: str
    """The file, and the place in it where a file holds many."""
    text: bytes
    """UTF-8, as it stands in the file."""


class SourceReader(Protocol):
    """A source lists what it has, cheaply, and then reads documents out of it, a unit at a time, in any process.

    Both are in a fixed order, so that the same files always make the same corpus.
    """

    @property
    def kind(self) -> str: ...

    @property
    def licence(self) -> str: ...

    @property
    def state(self) -> str:
        """What tells this state of the source from another: a version, a commit, a date; empty where nothing does."""

    def units(self) -> list[Unit]:
        """Raises `InputError` where there is nothing to read."""

    def documents(self, unit: Unit) -> Iterator[Document]:
        """Raises `InputError` that names the file and the place in it which cannot be read."""


def group_into_units(files: Iterable[SourceFile]) -> list[Unit]:
    """Neighbouring files together up to `UNIT_BYTES`, so that neither ten thousand files nor one make poor units."""
    units: list[Unit] = []
    group: list[SourceFile] = []
    size = 0
    for file in files:
        if group and size + file.expected_bytes > UNIT_BYTES:
            units.append(Unit(tuple(group)))
            group, size = [], 0
        group.append(file)
        size += file.expected_bytes
    return [*units, Unit(tuple(group))] if group else units
