"""Fetching what a reader has announced while it reads what comes before."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pretrain.corpus.cache import NoRoomError

THREADS = 2


class FetchAhead:
    """Calls `fetch(number)` for announced numbers, in the order of their first use, until `limit()` of them wait to be
    used; and `release(number)` when all announced reads of a number are done.

    Threads run only while there is something to fetch. When `fetch` raises `NoRoomError` they pause until a number is
    released or announced. What else goes wrong in them is left for the reader, who fetches what is still missing
    himself.
    """

    def __init__(self, fetch: Callable[[int], object], release: Callable[[int], object], limit: Callable[[], int]):
        self._fetch = fetch
        self._release = release
        self._limit = limit
        self._lock = threading.Lock()
        self._earlier: dict[int, int] = {}
        """How many reads the announcement before the last one has left, by number; of used up numbers there is none."""
        self._latest: dict[int, int] = {}
        """The same of the last announcement."""
        self._coming: dict[int, None] = {}
        """Announced and not used since, in order of first use."""
        self._taken: set[int] = set()
        """Those of them that have been fetched or are being fetched."""
        self._running = 0
        self._changes = 0
        """Announcements and releases: what may have made room."""
        self._no_room_at: int | None = None
        """`_changes` when there was last found to be no room."""

    def announce(self, reads: dict[int, int]) -> None:
        """Numbers that will be used, in order of first use, and how often, after what was announced last.

        What an earlier announcement has left is taken as passed over.
        """
        with self._lock:
            passed_over = self._earlier.keys() - self._latest.keys() - reads.keys()
            self._earlier, self._latest = self._latest, dict(reads)
            for number in passed_over:
                self._give_up(number)
                self._release(number)
            self._coming |= dict.fromkeys(reads)
            self._changes += 1
            self._start()

    def used(self, number: int) -> None:
        """One read of `number` is done."""
        with self._lock:
            self._give_up(number)
            reads = self._earlier if number in self._earlier else self._latest
            if number in reads:
                reads[number] -= 1
                if not reads[number]:
                    del reads[number]
                    if number not in self._latest:
                        self._release(number)
                        self._changes += 1
            self._start()

    def left(self) -> set[int]:
        """Numbers of which announced reads are to come."""
        with self._lock:
            return self._earlier.keys() | self._latest.keys()

    def _give_up(self, number: int) -> None:
        self._coming.pop(number, None)
        self._taken.discard(number)

    def _start(self) -> None:
        if self._running < THREADS and self._next_is_due():
            self._running += 1
            threading.Thread(target=self._run, name="fetch-ahead", daemon=True).start()

    def _next_is_due(self) -> bool:
        return (
            len(self._taken) < len(self._coming)
            and self._no_room_at != self._changes
            and len(self._taken) < self._limit()
        )

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._next_is_due():
                    self._running -= 1
                    return
                number = next(number for number in self._coming if number not in self._taken)
                self._taken.add(number)
                changes = self._changes
                self._start()
            try:
                self._fetch(number)
            except NoRoomError:
                with self._lock:
                    self._taken.discard(number)
                    self._no_room_at = changes
            except Exception:
                with self._lock:
                    self._give_up(number)
