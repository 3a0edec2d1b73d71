"""How far long work has got, for people: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

Advance = Callable[[int], None]
SECONDS_BETWEEN_LINES = 5


class Unit(NamedTuple):
    name: str
    size: float
    """How much work one of it is."""


MEGABYTES = Unit("MB", 1e6)
KILOTOKENS = Unit("k tokens", 1e3)


@contextmanager
def show_progress(console: Console, label: str, total: int, unit: Unit) -> Iterator[Advance]:
    """Show rate and time left of about `total` bytes or tokens of work; call what it yields with each part done."""
    work = _Work(label, total, unit)
    if console.is_terminal:
        with Progress(BarColumn(), TextColumn("{task.description}"), console=console, transient=True) as bars:
            task = bars.add_task(work.line(), total=total)
            yield lambda amount: bars.update(task, advance=amount, description=work.advance(amount))
    else:
        shown = time.monotonic()

        def advance(amount: int) -> None:
            nonlocal shown
            line = work.advance(amount)
            if time.monotonic() - shown >= SECONDS_BETWEEN_LINES:
                shown = time.monotonic()
                console.print(line, highlight=False, soft_wrap=True)

        yield advance
    console.print(work.line(), highlight=False, soft_wrap=True)


class _Work:
    def __init__(self, label: str, total: int, unit: Unit) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._done = 0
        self._began = time.monotonic()

    def advance(self, amount: int) -> str:
        self._done += amount
        return self.line()

    def line(self) -> str:
        seconds = max(time.monotonic() - self._began, 1e-3)
        name, size = self._unit
        text = f"{self._label}: {self._done / size:,.1f} of {self._total / size:,.1f} {name}"
        if not self._done:
            return text
        text += f", {self._done / size / seconds:,.1f} {name}/s"
        left = seconds * (self._total - self._done) / self._done
        return f"{text}, ETA {timedelta(seconds=round(left))}" if left > 0 else f"{text}, {seconds:.1f} s"
