"""The step a worker process has come to, left for the supervisor above it, which reads it however the worker ended."""

from __future__ import annotations

import os
from pathlib import Path

WORKER = "PERCEIVER_WORKER"
"""Environment variable that makes a process a supervisor's worker: the file it leaves its step in."""

_step: int | None = None
_file: int | None = None


def report_step(step: int) -> None:
    """Call when all ranks are agreed to take `step`: should any of them die in it, all name the same one."""
    global _step, _file
    _step = step
    if WORKER in os.environ:
        if _file is None:
            _file = os.open(os.environ[WORKER], os.O_WRONLY)
        os.pwrite(_file, f"{step:20}".encode(), 0)  # as long each time, so that one write replaces the number


def reported_step() -> int | None:
    """The last that this process has reported."""
    return _step


def read_step(path: Path) -> int | None:
    """The last that the worker with this file has reported; None where it did not get that far."""
    text = path.read_text()
    return int(text) if text else None
