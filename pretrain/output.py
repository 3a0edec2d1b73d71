"""Standard output and error that may fail: they often lie on the disk that is full, or whoever read them is gone."""

from __future__ import annotations

import io
import sys
from contextlib import suppress
from typing import TextIO


class LastingOutput(io.TextIOWrapper):
    """Takes over a text stream; what it cannot write is lost, and nobody is told."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(
            stream.buffer,
            stream.encoding,
            stream.errors,
            line_buffering=bool(stream.line_buffering),
            write_through=True,
        )

    def write(self, text: str) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def keep_going_without_output() -> None:
    """From now on no `print` of this process fails with an OSError."""
    sys.stdout, sys.stderr = LastingOutput(sys.stdout), LastingOutput(sys.stderr)
