"""How far long work is: a line that renews itself on a terminal, elsewhere a new one now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_RENEWALS = 0.2


def show_progress(values: Iterable[T], name: str, total: int | None) -> Iterator[T]:
    """Pass `values` on and tell on stderr how many of about `total` have been, their rate and the time left."""
    renews = sys.stderr.isatty()
    before, end = ("\r\x1b[K", "") if renews else ("", "\n")
    seconds = SECONDS_BETWEEN_RENEWALS if renews else SECONDS_BETWEEN_LINES
    began = shown = time.monotonic()
    done = 0
    try:
        for value in values:
            yield value
            done += 1
            if (now := time.monotonic()) - shown >= seconds and done != total:
                shown = now
                print(f"{before}{_line(done, name, total, now - began)}", end=end, file=sys.stderr, flush=True)
    finally:
        print(f"{before}{_line(done, name, None, time.monotonic() - began)}", file=sys.stderr)


def _line(done: int, name: str, total: int | None, seconds: float) -> str:
    if total is None or not done:
        return f"{done:,} {name}, {done / max(seconds, 1e-3):.2f} {name}/s"
    left = timedelta(seconds=round(seconds / done * max(0, total - done)))
    return f"{done:,} of {total:,} {name}, {done / max(seconds, 1e-3):.2f} {name}/s, ETA {left}"
