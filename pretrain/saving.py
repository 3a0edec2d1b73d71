"""When a run saves its state, and what it does where the file system refuses."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pretrain.checkpoint import Saver
from pretrain.config import CheckpointSection
from pretrain.distributed import Watchdog

RETRY_SECONDS = 60.0
"""After a save that failed, until the next is tried; a save that training waits for tries again sooner."""

State = Callable[[], dict[str, Any]]
"""All but the tensors: what becomes of ``state.json``. Collective."""


class Saving:
    """Begins checkpoints when they are due and finishes them when all ranks have written their shares.

    Times are those of rank 0: ranks agree on `is_due` in the exchange that every step makes anyway.
    """

    def __init__(self, section: CheckpointSection, saver: Saver, state: State, watchdog: Watchdog) -> None:
        self._section, self._saver, self._state, self._watchdog = section, saver, state, watchdog
        self._begun = (0, 0.0)
        """Step of the last checkpoint begun, and when, by the watchdog's seconds."""
        self._due = False
        self._next = time.monotonic() + self._interval

    @property
    def is_due(self) -> bool:
        """By this rank's clock."""
        return time.monotonic() >= self._next

    @property
    def is_writing(self) -> bool:
        """Whether this rank's share of a checkpoint is still being written in the background."""
        return self._saver.writing

    def after_step(self, step: int) -> None:
        self._due |= self._section.every > 0 and step % self._section.every == 0

    def tend(self, *, writing: bool, due: bool) -> None:
        """Finish what no rank is writing any more, begin what is due; both as agreed by all ranks. Collective.

        Raises RanksError after `checkpoint.max_failures` in a row. A write that takes `watchdog.save` seconds ends the
        process: a disk that does not answer, such as NFS whose server is gone, would let it train on unsaved for ever.
        """
        if self.is_writing:
            step, began = self._begun
            self._watchdog.check(f"saving step {step}: writing in the background", "save", began)
        if self._saver.pending and not writing:
            self._finish()
        self._due |= due
        if self._due and not self._saver.pending:
            self._begin(background=self._section.background)
            if not self._section.background:
                self._finish()

    def save(self, step: int, *, anew: bool) -> None:
        """Have a checkpoint of `step`, which is now, before training goes on or ends. Collective.

        `anew` replaces one that there is already, as more has become known than it holds.
        Raises RanksError where `checkpoint.max_failures` attempts have failed.
        """
        self.settle()
        pause = 1.0
        while anew or self._saver.saved_step != step:
            self._begin(background=False)
            if self._finish():
                anew = False
            else:
                time.sleep(pause)
                pause *= 2
        self._saver.wait()  # older checkpoints may still be on their way out

    def settle(self) -> None:
        """Wait for a checkpoint that is being written. Collective; raises as `tend` does."""
        if self._saver.pending:
            self._saver.wait()
            self._finish()

    @property
    def _interval(self) -> float:
        minutes = self._section.every_minutes
        return float("inf") if minutes is None else 60 * minutes

    def _begin(self, *, background: bool) -> None:
        self._due, self._next = False, time.monotonic() + self._interval
        state = self._state()
        self._begun = state["step"], self._watchdog.seconds
        self._saver.begin(state, background)

    def _finish(self) -> bool:
        if not (whole := self._saver.finish()):
            self._next = min(self._next, time.monotonic() + RETRY_SECONDS)
        return whole
