"""How far a pass over many bytes has got."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

Advance = Callable[[int], None]
SECONDS_BETWEEN_LINES = 5


@contextmanager
def byte_progress(console: Console, label: str, total: int) -> Iterator[Advance]:
    """Show MB/s and the time left of a pass over about `total` bytes: a bar on a terminal, else a line now and then."""
    if console.is_terminal:
        columns = BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
        with Progress(TextColumn("{task.description}"), *columns, console=console, transient=True) as bars:
            task = bars.add_task(label, total=total)
            yield lambda count: bars.advance(task, count)
    else:
        lines = _Lines(console, label, total)
        yield lines.advance
        lines.end()


class _Lines:
    def __init__(self, console: Console, label: str, total: int):
        self._console = console
        self._label = label
        self._total = total
        self._done = 0
        self._began = self._shown = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        if self._done and time.monotonic() - self._shown >= SECONDS_BETWEEN_LINES:
            self._shown = time.monotonic()
            left = (self._shown - self._began) * max(0, self._total - self._done) / self._done
            self._print(f" of {self._total / 1e6:.1f}", f", {left:.0f} s left")

    def end(self) -> None:
        self._print("", "")

    def _print(self, of: str, left: str) -> None:
        speed = self._done / 1e6 / max(time.monotonic() - self._began, 1e-3)
        line = f"{self._label}: {self._done / 1e6:.1f}{of} MB, {speed:.1f} MB/s{left}"
        self._console.print(line, highlight=False, soft_wrap=True)
