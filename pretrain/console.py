"""How far long work has got, for people: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

SECONDS_BETWEEN_LINES = 5


class Unit(NamedTuple):
    name: str
    size: float
    """How much work one of it is."""


MEGABYTES = Unit("MB", 1e6)
KILOTOKENS = Unit("k tokens", 1e3)


class Advance(Protocol):
    def __call__(self, amount: int, *, total: int | None = None) -> None:
        """Add to the work done; `total` replaces what is known of all of it."""


@contextmanager
def show_progress(console: Console, label: str, total: int, unit: Unit, done: int = 0) -> Iterator[Advance]:
    """Show rate and time left of about `total` bytes or tokens of work; call what it yields with each part done.

    `done` was done before: it counts, but not towards the rate.
    """
    work = _Work(label, total, unit, done)
    if console.is_terminal:
        with Progress(BarColumn(), TextColumn("{task.description}"), console=console, transient=True) as bars:
            task = bars.add_task(work.line(), total=total, completed=done)

            def advance(amount: int, *, total: int | None = None) -> None:
                work.advance(amount, total)
                bars.update(task, completed=work.done, total=work.total, description=work.line())

            yield advance
    else:
        shown = time.monotonic()

        def advance(amount: int, *, total: int | None = None) -> None:
            nonlocal shown
            work.advance(amount, total)
            if time.monotonic() - shown >= SECONDS_BETWEEN_LINES:
                shown = time.monotonic()
                console.print(work.line(), highlight=False, soft_wrap=True)

        yield advance
    console.print(work.line(), highlight=False, soft_wrap=True)


class _Work:
    def __init__(self, label: str, total: int, unit: Unit, done: int) -> None:
        self.total, self.done = total, done
        self._label, self._unit = label, unit
        self._done_before = done
        self._began = time.monotonic()

    def advance(self, amount: int, total: int | None) -> None:
        self.done += amount
        if total is not None:
            self.total = total

    def line(self) -> str:
        seconds = max(time.monotonic() - self._began, 1e-3)
        name, size = self._unit
        left = self.total - self.done
        # More than all there should be: compressed files hold more than their size, how much more shows at their end.
        of_all = f" of {self.total / size:,.1f}" if left >= 0 else ""
        text = f"{self._label}: {self.done / size:,.1f}{of_all} {name}"
        done_now = self.done - self._done_before
        if not done_now:
            return text
        text += f", {done_now / size / seconds:,.1f} {name}/s"
        if left > 0:
            return f"{text}, ETA {timedelta(seconds=round(seconds * left / done_now))}"
        return f"{text}, {seconds:.1f} s"
