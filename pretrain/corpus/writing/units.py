"""Units of work that are finished once, whatever becomes of the process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from pydantic import NonNegativeInt, ValidationError
from rich.console import Console

from pretrain.console import MEGABYTES, print_line, show_progress
from pretrain.corpus.writing.workers import Job, Report, Workers
from pretrain.errors import InputError
from pretrain.files import replace_text
from pretrain.schema import Section

RESULT = ".done"
"""Suffix of the file with a unit's result: it is written last, so where it is, the unit's other files are."""


class UnitResult(Section):
    text_bytes: NonNegativeInt
    """Worked through by the unit."""
    files: dict[str, NonNegativeInt]
    """Sizes of the files that the unit has written, by path relative to its result. Bringing them to the disk would
    take longer than writing them; after a failure of the machine, what did not get there has another size, or shows
    by its hash when it is read."""


ResultT = TypeVar("ResultT", bound=UnitResult)


class WorkUnit(NamedTuple, Generic[ResultT]):
    path: Path
    """The `.done` file for the result; its name changes with whatever changes the result."""
    size: int
    """Expected bytes of text, or whatever is in proportion to them."""
    compute: Job[ResultT]
    """It may find some of the files it writes there, left by an attempt that was killed."""


@dataclass(frozen=True)
class UnitRunner:
    workers: Workers
    console: Console
    process_bytes: int
    """Text that makes it worth starting another process."""

    def finish(
        self, label: str, units: Sequence[WorkUnit[ResultT]], result: type[ResultT], text_bytes: int | None = None
    ) -> list[ResultT]:
        """Compute the units that are not finished; the results of all, in their order.

        Args:
            text_bytes: of all units, where that is known.

        Raises:
            InputError: from a unit, or a file cannot be written. What is finished stays.
        """
        distinct = {unit.path: unit for unit in units}
        found = {path: read_result(path, result) for path in distinct}
        results = {path: finished for path, finished in found.items() if finished is not None}
        if results:
            print_line(self.console, f"{label}: resumed, {len(results)} of {len(distinct)} units are finished")
        expected = _Expected(sum(unit.size for unit in distinct.values()), text_bytes)
        for path, finished in results.items():
            expected.learn(distinct[path].size, finished.text_bytes)
        # The largest come first, or the last one would be waited for alone; of equal ones, the first.
        pending = sorted((unit for unit in distinct.values() if unit.path not in results), key=lambda unit: -unit.size)
        jobs = [_Recorded(unit) for unit in pending]
        processes = 1 + sum(unit.size for unit in pending) // self.process_bytes
        with show_progress(self.console, label, expected.total(), MEGABYTES, done=expected.known) as advance:
            for number, computed in self.workers.run(jobs, processes, advance):
                results[pending[number].path] = computed
                expected.learn(pending[number].size, computed.text_bytes)
                advance(0, total=expected.total())
        return [results[unit.path] for unit in units]


class _Expected:
    """How much text there will be: where nobody knows, as much per size as in the units that are finished."""

    def __init__(self, size: int, text_bytes: int | None):
        self.known = 0
        self._text_bytes = text_bytes
        self._all_sizes = size
        self._known_sizes = 0

    def learn(self, size: int, text_bytes: int) -> None:
        self.known += text_bytes
        self._known_sizes += size

    def total(self) -> int:
        if self._text_bytes is not None:
            return self._text_bytes
        rate = self.known / self._known_sizes if self._known_sizes else 1
        return self.known + round(rate * (self._all_sizes - self._known_sizes))


class _Recorded(NamedTuple, Generic[ResultT]):
    """A unit as a job that leaves its result on the disk."""

    unit: WorkUnit[ResultT]

    def __call__(self, report: Report) -> ResultT:
        path = self.unit.path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            result = self.unit.compute(report)
            write_result(path, result)
        except OSError as error:
            raise InputError(str(error) if error.filename else f"{path.parent}: {error}") from error
        return result


def read_result(path: Path, result: type[ResultT]) -> ResultT | None:
    """The result of a unit, None if it is not finished."""
    try:
        finished = result.model_validate_json(path.read_bytes())
        sizes = {name: (path.parent / name).stat().st_size for name in finished.files}
    except (FileNotFoundError, ValidationError):
        return None
    return finished if sizes == finished.files else None


def write_result(path: Path, result: UnitResult) -> None:
    """Make a unit finished."""
    replace_text(path, result.model_dump_json())


def file_sizes(paths: Iterable[Path]) -> dict[str, int]:
    """`UnitResult.files` of files that lie beside the result."""
    return {path.name: path.stat().st_size for path in paths}
