"""Fetching what a reader has announced while it reads what comes before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

THREADS = 2


class FetchAhead:
    """Calls `fetch(number)` for announced numbers, in their order, until `limit` of them wait to be used.

    Threads run only while there is something to fetch. What goes wrong in them is left for the reader, who fetches what
    is still missing himself.
    """

    def __init__(self, fetch: Callable[[int], object], limit: int):
        self._fetch = fetch
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: dict[int, None] = {}
        self._unused: set[int] = set()
        """Fetched, or being fetched, and not used yet."""
        self._running = 0

    def announce(self, numbers: Iterable[int]) -> None:
        """Numbers that will be used, in order of first use, after those announced before."""
        numbers = dict.fromkeys(numbers)
        with self._lock:
            self._unused &= numbers.keys()  # what was announced and passed over must not count for ever
            self._waiting |= {number: None for number in numbers if number not in self._unused}
            self._start()

    def used(self, number: int) -> None:
        """The reader has come to `number`, which makes room for another."""
        if number not in self._unused and number not in self._waiting:
            return  # nearly always so, and it must cost nothing then
        with self._lock:
            self._unused.discard(number)
            self._waiting.pop(number, None)
            self._start()

    def _start(self) -> None:
        if self._running < THREADS and self._next_is_due():
            self._running += 1
            threading.Thread(target=self._run, name="fetch-ahead", daemon=True).start()

    def _next_is_due(self) -> bool:
        return bool(self._waiting) and len(self._unused) < self._limit

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._next_is_due():
                    self._running -= 1
                    return
                number = next(iter(self._waiting))
                del self._waiting[number]
                self._unused.add(number)
                self._start()
            try:
                self._fetch(number)
            except Exception:
                with self._lock:
                    self._unused.discard(number)
