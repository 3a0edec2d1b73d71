"""What becomes of the other ranks when something happens to one: real processes, real signals."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pretrain.errors import DONE, FAILED, STOPPED

WORKER = Path(__file__).parent / "rank_worker.py"
ROOT = Path(__file__).parents[3]
SOON = 30.0
"""Seconds after which something bounded by a few has happened on a busy machine too."""


class Rank:
    """A process of a run and what it prints."""

    def __init__(self, rank: int, size: int, port: int, what: dict[str, Any]) -> None:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, WORKER, json.dumps(what)],
            env=environment | {k: str(v) for k, v in place.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output = ""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line

    def wait_for(self, line: str, timeout: float = 120) -> None:
        stop = time.monotonic() + timeout
        while f"{line}\n" not in self.output:
            assert time.monotonic() < stop and self.process.poll() is None, self.output
            time.sleep(0.02)

    def end(self, timeout: float = 120) -> tuple[int, str]:
        """Exit code, and what it said of errors."""
        code = self.process.wait(timeout)
        time.sleep(0.1)  # the reader's
        return code, "".join(line for line in self.output.splitlines(True) if line.startswith("error:"))


@pytest.fixture
def start() -> Iterator[Callable[..., list[Rank]]]:
    """start(what, ranks) -> a run's processes, of which none is left in the end."""
    started: list[Rank] = []

    def start(what: dict[str, Any], size: int = 2, only: int | None = None, port: int | None = None) -> list[Rank]:
        ranks = range(size) if only is None else [only]
        port = port or free_port()
        new = [Rank(rank, size, port, what) for rank in ranks]
        started.extend(new)
        return new

    yield start
    for rank in started:
        rank.process.kill()
        rank.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("victim", [0, 1])
def test_the_others_name_a_killed_rank_and_end(start: Callable[..., list[Rank]], victim: int) -> None:
    ranks = start({"steps": 10_000}, size=3 if victim else 2)
    for rank in ranks:
        rank.wait_for("step 3")
    ranks[victim].process.kill()
    ends = [rank.end(SOON) for rank in ranks if rank is not ranks[victim]]
    assert [code for code, _ in ends] == [FAILED] * len(ends)
    said = "".join(text for _, text in ends)
    assert f"rank {victim} (host {socket.gethostname()}, pid {ranks[victim].process.pid}) is dead" in said
    assert said.count("\n") == 1, "ranks of one host say it once"
    assert "Traceback" not in "".join(rank.output for rank in ranks)


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_rank_that_stands_still_is_given_up(start: Callable[..., list[Rank]], victim: int) -> None:
    ranks = start({"steps": 10_000, "watchdog": {"dead_rank": 2}})
    for rank in ranks:
        rank.wait_for("step 3")
    ranks[victim].process.send_signal(signal.SIGSTOP)
    code, said = ranks[1 - victim].end(SOON)
    assert code == FAILED
    assert f"rank {victim} (host" in said
    assert "has given no sign for 2 s (watchdog.dead_rank)" in said


def test_a_hang_ends_all_ranks_with_stacks(start: Callable[..., list[Rank]]) -> None:
    ranks = start({"steps": 5, "watchdog": {"step": 2}, "ranks": {"1": {"sleep": 1000}}})
    for rank in ranks:
        code, said = rank.end()
        assert code == FAILED
        assert "error: nothing for 2 s (watchdog.step); " in said
        assert "rank 1 in step 3: reading data" in said
        assert "rank 0 in step 3: meeting the other ranks" in said
    assert 'rank_worker.py", line' in ranks[1].output, "the place it is stuck in"
    assert "in misbehave" in ranks[1].output


@pytest.mark.slow
def test_a_hang_that_holds_the_interpreters_lock_ends_too(start: Callable[..., list[Rank]]) -> None:
    # The watchdog's own thread is held up as well, after it has begun to watch.
    how = {"sleep": 1, "hold the lock": True}
    [rank] = start({"steps": 5, "watchdog": {"step": 3}, "margin": 5, "ranks": {"0": how}}, size=1)
    code, _ = rank.end()
    assert code == FAILED
    assert "in misbehave" in rank.output


@pytest.mark.slow
def test_a_run_that_was_suspended_goes_on(start: Callable[..., list[Rank]]) -> None:
    [rank] = start({"steps": 60, "watchdog": {"step": 2}}, size=1)
    rank.wait_for("step 5")
    rank.process.send_signal(signal.SIGSTOP)
    time.sleep(20)
    rank.process.send_signal(signal.SIGCONT)
    code, said = rank.end()
    assert (code, said) == (0, ""), rank.output


def test_a_rank_that_fails_is_named_with_its_error(start: Callable[..., list[Rank]]) -> None:
    ranks = start({"steps": 10_000, "ranks": {"1": {"raise": "spoilt"}}})
    code, said = ranks[0].end()
    assert code == FAILED
    pid = ranks[1].process.pid
    assert (
        said == f"error: rank 1 (host {socket.gethostname()}, pid {pid}) ended with exit code 1: ValueError: spoilt\n"
    )
    assert ranks[1].end()[0] == FAILED
    assert "ValueError: spoilt" in ranks[1].output


def test_ranks_stop_together_whoever_was_asked(start: Callable[..., list[Rank]]) -> None:
    # Rank 0 has more to do in the end: the other waits, and its going is nobody's death.
    ranks = start({"steps": 10_000, "last": {"0": 3}})
    for rank in ranks:
        rank.wait_for("step 3")
    asked = time.monotonic()
    ranks[1].process.send_signal(signal.SIGUSR1)
    assert [rank.end(SOON) for rank in ranks] == [(STOPPED, "")] * 2
    assert time.monotonic() - asked > 3


def test_absent_ranks_are_named(start: Callable[..., list[Rank]]) -> None:
    what = {"steps": 5, "watchdog": {"setup": 3}}
    [first] = start(what, size=4, only=0)
    [without_first] = start(what, size=2, only=1)
    assert first.end() == (FAILED, "error: ranks 1-3 not there after 3 s (watchdog.setup)\n")
    assert without_first.end() == (FAILED, "error: rank 0 not there after 3 s (watchdog.setup)\n")


def test_a_signal_ends_the_wait_for_absent_ranks(start: Callable[..., list[Rank]]) -> None:
    port = free_port()
    ranks = [start({"steps": 5}, size=3, only=rank, port=port)[0] for rank in (0, 1)]
    for i, rank in enumerate(ranks):
        rank.wait_for(f"rank {i} started")
    wait_until_served(port)
    time.sleep(2)
    ranks[1].process.send_signal(signal.SIGTERM)
    assert [rank.end(SOON)[0] for rank in ranks] == [STOPPED] * 2
    assert "stopped before the first step (SIGTERM)" in ranks[0].output


def wait_until_served(port: int) -> None:
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.1)


@pytest.mark.slow
def test_a_restarted_rank_does_not_join_the_run_before(start: Callable[..., list[Rank]]) -> None:
    port = free_port()
    # Rank 0 is stuck when rank 1 dies, and lives on for a while.
    before = start({"steps": 5, "ranks": {"0": {"sleep": 1000}}}, port=port)
    before[1].wait_for("step 2")
    before[1].process.kill()
    [again] = start({"steps": 5}, only=1, port=port)
    assert before[0].end(SOON)[0] == FAILED
    [first] = start({"steps": 5}, only=0, port=port)
    assert [rank.end()[0] for rank in (first, again)] == [DONE] * 2
    assert "step 5" in again.output
