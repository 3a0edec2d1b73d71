"""Exports a run's checkpoints as they appear and uploads them, however long the Hub may be away."""

from __future__ import annotations

import random
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from pretrain.errors import InputError
from pretrain.hub.outbox import Outbox, Parcel
from pretrain.hub.upload import HubUnavailable, attempt_upload, make_repository

POLL_SECONDS = 2.0
"""Between looks at what there is to do."""
MAX_WAITING = 3
"""Exported checkpoints at most, besides the one being uploaded: a Hub that is away for days must not fill the disk."""
FIRST_PAUSE = 2.0
"""Seconds after the first failure; each next one is twice as long."""
LONGEST_PAUSE = 300.0
REFUSED_PAUSE = 600.0
"""After the Hub has refused: only people can change that, by another token or other rights."""


class Uploader:
    """Does the work of an `Outbox` bit by bit: whoever has it calls `tend` every now and then."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._exporting, self._uploading = Trouble(), Trouble()
        self._thread = ThreadPoolExecutor(1, "upload")
        self._under_way: tuple[Parcel | None, Future[Any]] | None = None
        """What is being sent, None before the first; checkpoints must not wait for it to be exported."""
        self._problem: str | None = None
        """Why something that is due is not exported."""
        self._finishing = False

    def greet(self) -> None:
        """Make the repository: a token that will not do is better known at the start than at the first checkpoint."""
        section = self._outbox.section
        self._under_way = None, self._thread.submit(make_repository, section.repo, private=section.private)

    def finish(self) -> None:
        """There will be no further checkpoints: from now on `tend` raises what will not pass by itself."""
        self._finishing = True
        self._exporting.hurry()
        self._uploading.hurry()

    def tend(self) -> bool:
        """Export what is due, see to the uploads; whether there is anything left to do.

        Raises `InputError` when finishing, where an export fails or the Hub refuses.
        """
        if self._under_way is not None and self._under_way[1].done():
            self._conclude(*self._under_way)
        due = self._outbox.due()
        if not due or self._exporting.is_over:
            self._export(due)
        parcels = self._outbox.parcels()
        if parcels and self._under_way is None and self._uploading.is_over:
            self._under_way = parcels[0], self._thread.submit(self._send, parcels[0])
        if self._finishing and self._problem is not None and not parcels:
            raise InputError(self._problem)
        return bool(due or parcels)

    def _export(self, due: list[int]) -> None:
        problems = []
        for step in due:
            try:
                if not self._export_if_room(step):
                    break
            except (InputError, OSError) as error:
                problems.append(f"step-{step} is not exported: {error}")
        self._problem = next(iter(problems), None)
        if self._problem is None:
            self._exporting.forget()
        else:
            self._exporting.note(self._problem, f"{self._problem}; {self._meanwhile}")

    def _export_if_room(self, step: int) -> bool:
        """False where only newer ones wait, as many as may."""
        sending = self._under_way[0] if self._under_way is not None else None
        waiting = [other for other in self._outbox.waiting() if sending is None or other != sending.step]
        is_full = len(waiting) >= MAX_WAITING
        if is_full and step < waiting[-1]:
            return False
        self._outbox.export(step)
        if is_full:
            self._outbox.drop(waiting[-1])
            warn(f"step-{waiting[-1]} is dropped: {MAX_WAITING} newer ones wait for the Hub already")
        return True

    def _send(self, parcel: Parcel) -> str:
        section = self._outbox.section
        message = f"Step {parcel.step:,}"
        return attempt_upload(parcel.folder, section.repo, parcel.revision, private=section.private, message=message)

    def _conclude(self, parcel: Parcel | None, attempt: Future[Any]) -> None:
        self._under_way = None
        try:
            url = attempt.result()
        except InputError as error:
            self._upload_failed(error)
            return
        self._uploading.forget()
        if parcel is None:
            return
        print(f"hub             {parcel.revision} uploaded: {url}", flush=True)
        try:
            self._outbox.sent(parcel, url)
        except OSError as error:
            warn(f"{parcel.revision} has arrived, which could not be written down: {error}")

    def _upload_failed(self, error: InputError) -> None:
        if isinstance(error, HubUnavailable):
            self._uploading.note("unavailable", f"{error}; {self._meanwhile}", at_least=error.wait)
        elif self._finishing:
            raise error
        else:
            self._uploading.note("refused", f"{error}; {self._meanwhile}", at_least=REFUSED_PAUSE)

    @property
    def _meanwhile(self) -> str:
        return "trying again" if self._finishing else "training goes on"


class Trouble:
    """Something that fails for a while: warned about once, and tried again after seconds, then minutes."""

    def __init__(self) -> None:
        self.forget()

    @property
    def is_over(self) -> bool:
        """Whether it is time to try again, or there is no trouble."""
        return time.monotonic() >= self._next

    def forget(self) -> None:
        self._told, self._pause, self._next = "", FIRST_PAUSE, 0.0

    def hurry(self) -> None:
        """Do not wait any longer for the next try."""
        self._next = 0.0

    def note(self, kind: str, message: str, at_least: float = 0.0) -> None:
        """It has failed; the same kind of failure in a row is told once. `at_least` are seconds until the next try."""
        if kind != self._told:
            warn(message)
        self._told = kind
        # Jitter: the runs of a cluster must not all come back at the same moment.
        self._next = time.monotonic() + max(self._pause * random.uniform(0.75, 1.25), at_least)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)


def warn(message: str) -> None:
    print(f"warning: hub: {message}", file=sys.stderr, flush=True)
