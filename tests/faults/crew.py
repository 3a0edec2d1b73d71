"""Ranks in 0.1 s instead of 5: forked from a process that has imported torch and deepspeed and done nothing else.

Such a fork is sound as long as the process forked from has one thread, no process group and no accelerator in use; each
rank checks that. From there on it is what a launcher starts: its own process with RANK, WORLD_SIZE and the rest in its
environment, which runs the train command.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.faults.phases import replace

ROOT = Path(__file__).parents[2]
SERVER = multiprocessing.get_context("forkserver")
MODULES = ["pretrain.train", "pretrain.loop", "tests.faults.crew", "deepspeed.runtime.zero.muon.muon_optimizer"]
"""What a rank imports, the last while DeepSpeed builds its engine, which brings torch's compiler with it."""
Fault = Callable[[int], None]
"""Called with the rank in each rank's process before it starts; picklable."""


@dataclass
class Crew:
    """The ranks of one attempt at a run."""

    processes: list[BaseProcess]
    logs: list[Path]

    def kill(self, ranks: Iterable[int]) -> None:
        for rank in ranks:
            self.processes[rank].kill()

    def wait(self, seconds: float = 120) -> list[int | None]:
        """Exit codes by rank, negative for signals; None for those that have not ended by then, which are killed."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
            process.join()
        return codes

    def expect(self, *codes: int, seconds: float = 120) -> str:
        """Demand these exit codes, by rank, in that time; returns what the ranks printed."""
        found = self.wait(seconds)
        assert found == list(codes), f"exit codes {found}\n{self.output()}"
        return self.output()

    def output(self) -> str:
        return "\n".join(log.read_text() for log in self.logs)


def start(config: Path, ranks: int = 2, faults: Sequence[Fault] = (), logs: Path | None = None) -> Crew:
    """Start `ranks` processes that train the run of `config`; their output goes to files in `logs`, or beside it."""
    warm_up()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes, files = [], []
    for rank in range(ranks):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        log = (logs or config.parent) / f"{config.stem}.rank{rank}.log"
        environment = {name: str(value) for name, value in place.items()}
        process = SERVER.Process(target=_be_rank, args=(rank, config, environment, log, tuple(faults)))
        process.start()
        processes.append(process)
        files.append(log)
    return Crew(processes, files)


def warm_up() -> None:
    """Start the process that ranks are forked from, unless it runs."""
    # It reads both when it starts; torch counts its threads then, and ranks find the modules of faults by the path.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTHONPATH"] = str(ROOT)
    SERVER.set_forkserver_preload(MODULES)


def _be_rank(rank: int, config: Path, environment: dict[str, str], log: Path, faults: tuple[Fault, ...]) -> None:
    assert "deepspeed" in sys.modules, "the process that ranks are forked from could not import pretrain.loop"
    assert threading.active_count() == 1 and len(os.listdir("/proc/self/task")) == 1, "forked from several threads"
    os.environ.update(environment)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    replace("pretrain.recording:matmul_peak", lambda _: lambda *_: 1e12)
    replace("pretrain.loop:write_report", lambda _: lambda *_: None)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    for fault in faults:
        fault(rank)
    from pretrain.errors import run_command
    from pretrain.train import main

    sys.argv[1:] = ["--config", str(config)]
    run_command(main)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
