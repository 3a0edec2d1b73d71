"""Two runs never write to one run directory at a time."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

from pretrain.errors import Unavailable
from pretrain.outcome import read_outcome

LOCK_FILE = "run.lock"
LAST_MOMENTS = 10.0
"""Seconds in which the process that has held the lock may still be ending."""


def hold_run(run_dir: Path) -> None:
    """Keep other runs out of `run_dir` until this process ends, however it does, and those that it hands its files to.

    Raises Unavailable where another one holds it. A file system that knows no locks, or cannot be written just now, is
    no reason not to train.
    """
    with suppress(OSError):
        run_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(run_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
        os.set_inheritable(handle, True)  # a supervisor's worker may outlive it by a save
        deadline = time.monotonic() + LAST_MOMENTS
        while not _lock(handle):
            if time.monotonic() > deadline:
                raise Unavailable(f"run.dir: {run_dir} is in use{_by(run_dir)}; wait for its end, or choose another")
            time.sleep(0.5)


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _by(run_dir: Path) -> str:
    outcome = read_outcome(run_dir)
    return "" if outcome is None else f" by process {outcome.pid} on {outcome.host}"
