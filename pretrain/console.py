"""What long work tells people: how far it has got, as a bar on a terminal, else as a line now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_BARS = 0.1


class Measure(NamedTuple):
    name: str
    size: float
    """How much work one of it is."""


MEGABYTES = Measure("MB", 1e6)
TOKENS = Measure("tokens", 1)


class Advance(Protocol):
    def __call__(self, amount: int, *, total: int | None = None) -> None:
        """Add to the work done; `total` replaces what is known of all of it."""


def print_line(console: Console, text: str) -> None:
    """Print text as it is: names of files and licences may look like markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def show_progress(console: Console, label: str, total: int, measure: Measure, done: int = 0) -> Iterator[Advance]:
    """Show rate and time left of about `total` bytes or tokens of work; call what it yields with each part done.

    `done` was done before: it counts, but not towards the rate.
    """
    work = _Work(label, total, measure, done)
    is_terminal = console.is_terminal
    seconds = SECONDS_BETWEEN_BARS if is_terminal else SECONDS_BETWEEN_LINES
    columns = BarColumn(), TextColumn("{task.description}", markup=False)
    with Progress(*columns, console=console, transient=True, disable=not is_terminal) as bars:
        task = bars.add_task(work.line(), total=total, completed=done)
        shown = time.monotonic()

        def advance(amount: int, *, total: int | None = None) -> None:
            nonlocal shown
            work.advance(amount, total)
            now = time.monotonic()
            if now - shown < seconds:
                return
            shown = now
            if is_terminal:
                bars.update(task, completed=work.done, total=work.total, description=work.line())
            else:
                print_line(console, work.line())

        yield advance
    print_line(console, work.line())


class _Work:
    def __init__(self, label: str, total: int, measure: Measure, done: int) -> None:
        self.total, self.done = total, done
        self._label, self._measure = label, measure
        self._done_before = done
        self._began = time.monotonic()

    def advance(self, amount: int, total: int | None) -> None:
        self.done += amount
        if total is not None:
            self.total = total

    def line(self) -> str:
        seconds = max(time.monotonic() - self._began, 1e-3)
        name, size = self._measure
        left = self.total - self.done
        # More than all there should be: compressed files hold more than their size, how much more shows at their end.
        digits = 0 if size == 1 else 1
        of_all = f" of {self.total / size:,.{digits}f}" if left >= 0 else ""
        text = f"{self._label}: {self.done / size:,.{digits}f}{of_all} {name}"
        done_now = self.done - self._done_before
        if not done_now:
            return text
        text += f", {done_now / size / seconds:,.1f} {name}/s"
        if left > 0:
            return f"{text}, ETA {timedelta(seconds=round(seconds * left / done_now))}"
        return f"{text}, {seconds:.1f} s"
