"""Requests to end a run early: by a signal, or by the end of whoever started this process."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import psutil

from pretrain.distributed.attempt import WORKER

SIGNALS = (
    *(signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT),
    # A closed terminal sends it; under nohup it is ignored, and stays so.
    *((signal.SIGHUP,) if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else ()),
)
SAME_REQUEST_SECONDS = 3.0
"""A terminal and a launcher above it may send the same Ctrl-C each: until then, signals are one request."""
LAUNCHERS = ("deepspeed", "deepspeed.launcher.", "torchrun", "torch.distributed.run", "torch.distributed.launch")


class StoppedEarly(Exception):
    """A rank was asked to stop before training began: nothing was done, nothing is lost."""


class StopRequest:
    """True once one of `SIGNALS` has asked the process to end, or the launcher above it is gone.

    The same signal again, or SIGINT after any other, ends the process at once, whatever its main thread is in, with
    exit code 128 + the signal's number. Another signal does not: launchers and SLURM send SIGTERM some time after what
    they or a terminal sent first. Make one per process, in the main thread.
    """

    def __init__(self) -> None:
        self.reason = ""
        """Such as ``SIGUSR1``, or ``the launcher (pid 12) is gone``; empty as long as nothing asks."""
        self._received: dict[signal.Signals, float] = {}
        self._launchers = launchers_above()
        # Handlers run in the main thread only, which may be stuck in a collective; the wake-up descriptor is written
        # wherever that is.
        received, written = os.pipe()
        os.set_blocking(written, False)
        for number in SIGNALS:
            signal.signal(number, lambda number, frame: None)
        signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        # A forked child would write its own signals into this process's pipe.
        os.register_at_fork(before=_hold, after_in_parent=_let_go, after_in_child=_forget)
        threading.Thread(target=self._watch, args=(received,), name="stop request", daemon=True).start()

    def __bool__(self) -> bool:
        return bool(self.reason)

    def _watch(self, received: int) -> None:
        while True:
            ready, _, _ = select.select([received], [], [], 1.0)
            for number in os.read(received, 64) if ready else b"":
                if number in SIGNALS:
                    self._receive(signal.Signals(number))
            for launcher in self._launchers:
                if not self.reason and not is_alive(launcher):
                    self._ask(f"the launcher (pid {launcher.pid}) is gone")

    def _receive(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if number == signal.SIGINT:
            earlier = min(self._received.values(), default=now)
        else:
            earlier = self._received.get(number, now)
        self._received.setdefault(number, now)
        if now - earlier > SAME_REQUEST_SECONDS:
            _end_at_once(number)
        if not self.reason:
            self._ask(number.name)

    def _ask(self, reason: str) -> None:
        self.reason = reason
        if os.environ.get("LOCAL_RANK", "0") == "0":
            again = f"the same again, after {SAME_REQUEST_SECONDS:g} s or more, ends at once"
            print(f"{reason}: stopping; {again}", file=sys.stderr, flush=True)


def _end_at_once(number: signal.Signals) -> NoReturn:
    os.write(2, f"{number.name} again: ended without a checkpoint\n".encode())
    os._exit(128 + number)


def _hold() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _let_go() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _forget() -> None:
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    _let_go()


def launchers_above() -> list[psutil.Process]:
    """The processes that have started this one to be a rank, nearest first: a supervisor, launchers; never a shell."""
    found: list[psutil.Process] = []
    parent = psutil.Process().parent()
    supervised = WORKER in os.environ
    while parent is not None and (supervised or is_launcher(_command_line(parent))):
        found.append(parent)
        parent, supervised = parent.parent(), False
    return found


def is_launcher(command_line: Sequence[str]) -> bool:
    """Whether a process of that command line is one of `LAUNCHERS`, run as a program, a script or a module."""
    words = [word for word in command_line if word == "-m" or not word.startswith("-")]
    if words and Path(words[0]).name.startswith("python"):
        words = words[1:]
    if words and words[0] == "-m":
        words = words[1:]
    name = Path(words[0]).name if words else ""
    return any(name == launcher or (launcher.endswith(".") and name.startswith(launcher)) for launcher in LAUNCHERS)


def is_alive(process: psutil.Process) -> bool:
    """Whether it still runs: one whose parent has not taken note of its end does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
