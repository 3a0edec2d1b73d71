"""A pool of processes for work that is lost with its process and no more."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection, get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Generic, NamedTuple, Protocol, TypeVar

from pretrain.errors import InputError

Report = Callable[[int], None]
"""Takes the bytes of text that were worked through since it was called last."""
SECONDS_BETWEEN_REPORTS = 0.1

ResultT = TypeVar("ResultT")
ResultT_co = TypeVar("ResultT_co", covariant=True)


class Job(Protocol[ResultT_co]):
    """Whatever can be pickled and called in another process."""

    def __call__(self, report: Report) -> ResultT_co: ...


class _Finished(NamedTuple, Generic[ResultT]):
    result: ResultT


class _Refused(NamedTuple):
    message: str


class _Failed(NamedTuple):
    traceback: str


class _Worker(NamedTuple):
    process: SpawnProcess
    pipe: Connection


class Workers:
    """Up to `processes` processes, started when there is work for them and killed when the context ends.

    They are spawned, not forked: tokenizers have threads. They die with this process, however it ends, and leave
    Ctrl-C to it. What they have in temporary files then stays where this process makes its own.
    """

    def __init__(self, processes: int):
        self._processes = processes
        self._workers: list[_Worker] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.pipe.close()

    def run(self, jobs: Sequence[Job[ResultT]], at_most: int, report: Report) -> Iterator[tuple[int, ResultT]]:
        """Do the jobs, begun in the given order, in at most `at_most` processes; with one, in this very process.

        Yields:
            The number of a job and its result, as they are finished.

        Raises:
            InputError: a job raised it, or its process was killed.
        """
        count = min(self._processes, at_most, len(jobs))
        if count <= 1:
            yield from ((number, job(report)) for number, job in enumerate(jobs))
        else:
            yield from self._distribute(jobs, count, report)

    def _distribute(self, jobs: Sequence[Job[ResultT]], count: int, report: Report) -> Iterator[tuple[int, ResultT]]:
        waiting = deque(enumerate(jobs))
        busy: dict[Connection, int] = {}
        for number in range(count):
            if number == len(self._workers):
                self._workers.append(_start())
            self._begin(self._workers[number].pipe, waiting, busy)
        while busy:
            for pipe in connection.wait(list(busy)):
                assert isinstance(pipe, Connection)
                message = self._receive(pipe)
                if isinstance(message, int):
                    report(message)
                    continue
                yield busy.pop(pipe), _unwrap(message)
                if waiting:
                    self._begin(pipe, waiting, busy)

    def _begin(self, pipe: Connection, waiting: deque[tuple[int, Job[ResultT]]], busy: dict[Connection, int]) -> None:
        number, job = waiting.popleft()
        try:
            pipe.send(job)
        except OSError:
            raise self._died(pipe) from None
        busy[pipe] = number

    def _receive(self, pipe: Connection) -> object:
        try:
            return pipe.recv()
        except (EOFError, OSError):
            raise self._died(pipe) from None

    def _died(self, pipe: Connection) -> InputError:
        [process] = [worker.process for worker in self._workers if worker.pipe is pipe]
        process.join()
        code = process.exitcode or 0
        how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended (exit code {code})"
        return InputError(f"processes: worker {process.pid} {how}; if memory ran out, set a smaller number of them")


def _unwrap(message: object) -> ResultT:  # type: ignore[type-var]
    if isinstance(message, _Refused):
        raise InputError(message.message)
    if isinstance(message, _Failed):
        raise RuntimeError(f"in a worker process:\n{message.traceback}")
    assert isinstance(message, _Finished)
    return message.result


def _start() -> _Worker:
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_serve, args=(theirs, tempfile.gettempdir()), daemon=True)
    # Ctrl-C reaches all processes of a terminal. A blocked signal stays blocked in a new process from its first moment
    # on; the tracker comes first because starting it lifts the block.
    resource_tracker.ensure_running()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    theirs.close()
    return _Worker(process, ours)


def _serve(pipe: Connection, temporary_files: str) -> None:
    tempfile.tempdir = temporary_files
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process for every core already
    threading.Thread(target=_die_with_parent, daemon=True).start()
    while True:
        job = pipe.recv()
        reporter = _Reporter(pipe)
        answer: object
        try:
            answer = _Finished(job(reporter))
        except InputError as error:
            answer = _Refused(str(error))
        except Exception:
            answer = _Failed(traceback.format_exc())
        reporter.flush()
        pipe.send(answer)


def _die_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class _Reporter:
    """Sends sums now and then: a message for each of a million short documents would cost more than reading them."""

    def __init__(self, pipe: Connection):
        self._pipe = pipe
        self._amount = 0
        self._sent = time.monotonic()

    def __call__(self, amount: int) -> None:
        self._amount += amount
        if time.monotonic() - self._sent >= SECONDS_BETWEEN_REPORTS:
            self.flush()

    def flush(self) -> None:
        self._pipe.send(self._amount)
        self._amount = 0
        self._sent = time.monotonic()
