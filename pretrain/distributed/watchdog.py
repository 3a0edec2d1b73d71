"""Ends a process in which nothing goes on any more, with the stacks of all its threads."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from typing import Literal, NoReturn, Self

from pretrain.config import WatchdogSection
from pretrain.distributed.ending import end, print_stacks
from pretrain.distributed.heartbeat import heartbeat
from pretrain.errors import FAILED

Limit = Literal["setup", "step", "save"]

_MARGIN_SECONDS = 4 * 3600.0
"""Of the last resort, whose clock goes on while the process is stopped (SIGSTOP, ``scontrol suspend``): one that was
stopped for longer than this is ended when it is continued."""
_JOINING_SECONDS = 5.0
"""Joining has the same limit, and names absent ranks: it is to be first."""


class Watchdog:
    """Watches one thing after another that this process does, each for its limit's seconds; a thread does the work.

    Everything under ``setup`` is one thing.
    """

    def __init__(self, section: WatchdogSection) -> None:
        self._limits: dict[Limit, float] = {
            "setup": section.setup,
            "step": section.step,
            "save": section.save,
        }
        self._doing: tuple[str, Limit] = ("set-up", "setup")
        self.seconds = 0.0
        """Since the start, without those in which the process was stopped."""
        self._tick = min(1.0, *(limit / 10 for limit in self._limits.values()))
        self._closed = threading.Event()
        self._arm(section.setup)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def enter(self, doing: str, limit: Limit) -> None:
        """From now on this process is in `doing`, such as ``step 57: reading data``. Costs nothing."""
        self._doing = (doing, limit)

    def check(self, doing: str, limit: Limit, since: float) -> None:
        """End the process if `doing`, which goes on beside what was entered, has taken its limit since `seconds`."""
        if self.seconds - since > self._limits[limit]:
            self._expire(doing, limit)

    def close(self) -> None:
        """Watch no more."""
        self._closed.set()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        watched, seconds, last = self._doing, 0.0, time.monotonic()
        while not self._closed.wait(self._tick):
            # A process that was stopped for a while is not hanging.
            passed, last = min(time.monotonic() - last, 2 * self._tick), time.monotonic()
            seconds, self.seconds = seconds + passed, self.seconds + passed
            if (now := self._doing) is not watched:
                seconds = seconds if now[1] == watched[1] == "setup" else 0.0
                watched = now
            doing, limit = watched
            if (beats := heartbeat()) is not None:
                beats.doing = doing
            if seconds > self._limits[limit] + (_JOINING_SECONDS if limit == "setup" else 0):
                self._expire(doing, limit)
            self._arm(self._limits[limit] - seconds)

    def _arm(self, seconds: float) -> None:
        # Where the main thread holds the interpreter's lock, Python's threads stand still. This one is none.
        faulthandler.dump_traceback_later(seconds + _MARGIN_SECONDS, exit=True)

    def _expire(self, doing: str, limit: Limit) -> NoReturn:
        what, rank = f"nothing for {self._limits[limit]:g} s (watchdog.{limit})", os.environ.get("RANK", "0")
        beats = heartbeat()
        text = beats.hang(doing, what).text if beats is not None else f"{what}; rank {rank} in {doing}"
        print(f"error: {text}", file=sys.stderr, flush=True)
        print_stacks(f"rank {rank}")
        end(FAILED, text)
