"""The last thing a process of a run does, however it ends."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

LAST_WORDS_SECONDS = 10.0

_callbacks: list[Callable[[int, str], None]] = []
_ending = threading.Lock()


def at_end(callback: Callable[[int, str], None]) -> None:
    """Have `callback(exit code, message)` called right before this process ends; it may come from any thread."""
    _callbacks.append(callback)


def end(code: int, message: str = "") -> NoReturn:
    """End this process with `code`, at once: gloo's threads abort some ordinary exits of processes that are done.

    `message` says in one line why, where that is a failure.
    """
    _ending.acquire()  # whoever comes second waits for the end here
    within(LAST_WORDS_SECONDS, lambda: _last_words(code, message))
    os._exit(code)


def _last_words(code: int, message: str) -> None:
    for callback in _callbacks:
        callback(code, message)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads any more
            stream.flush()


def within(seconds: float, work: Callable[[], object]) -> None:
    """Do `work`, or give it up after so many seconds: at the end, nothing that hangs may keep the process."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)


def print_stacks(who: str) -> None:
    """Where all threads of this process are, on stderr."""
    print(f"stacks of {who}:", file=sys.stderr, flush=True)
    faulthandler.dump_traceback()
