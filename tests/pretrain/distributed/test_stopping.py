import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from pretrain.distributed.stopping import is_launcher

ROOT = Path(__file__).parents[3]
RANK = """
import os, sys, time
from pretrain.distributed.stopping import StopRequest
stop = StopRequest()
print("started", os.getpid(), flush=True)
while not stop:
    time.sleep(0.01)
print(stop.reason, flush=True)
"""
STUCK = """
import ctypes
mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
lock(mutex)
lock(mutex)  # for ever, without coming back to the interpreter
"""


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """start(arguments) -> a process of Python, once it has printed that it has started."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("started")
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT", "SIGHUP"])
def test_a_signal_asks_to_stop(start: Callable[..., subprocess.Popen[str]], name: str) -> None:
    process = start("-c", RANK)
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=60)
    assert out == f"{name}\n"
    assert err.startswith(f"{name}: stopping; ")
    assert process.returncode == 0


def test_a_second_signal_ends_a_stuck_process_but_not_within_three_seconds(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    process = start("-c", RANK + STUCK)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):  # a terminal's and two launchers'
        process.send_signal(number)
        time.sleep(0.5)
    process.send_signal(signal.SIGCONT)
    time.sleep(2.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 128 + signal.SIGTERM


def test_what_slurm_and_launchers_send_later_is_no_second_request(start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start("-c", RANK + STUCK)
    process.send_signal(signal.SIGUSR1)
    time.sleep(3.5)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 128 + signal.SIGINT


def test_a_closed_terminal_is_ignored_under_nohup(start: Callable[..., subprocess.Popen[str]]) -> None:
    ignoring = f"import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n{RANK}"
    process = start("-c", ignoring)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "SIGTERM\n"


def test_a_signal_to_a_forked_child_is_its_own(start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start(
        "-c",
        RANK.replace("while not stop", "child = os.fork() or time.sleep(100)\nos.kill(child, 15)\nwhile False")
        + "print(os.waitpid(child, 0)[1], flush=True)\ntime.sleep(1)\nprint(bool(stop))",
    )
    assert process.communicate(timeout=60)[0].split() == ["15", "False"]


def as_child(folder: Path, name: str) -> Path:
    """A script of that name that starts a rank and waits for it."""
    script = folder / name
    script.write_text(f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {RANK!r}])\n")
    return script


def test_a_rank_stops_when_its_launcher_is_gone(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    launcher = start(as_child(tmp_path, "torchrun"))
    launcher.kill()  # a zombie for now, as nobody has waited for it
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == f"the launcher (pid {launcher.pid}) is gone\n"


def test_a_rank_goes_on_when_its_shell_is_gone(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    script = as_child(tmp_path, "shell.py")
    text = script.read_text().replace("subprocess.run(", "print('started', subprocess.Popen(").replace("])", "]).pid)")
    script.write_text(text)
    shell = start(script)
    shell.wait(60)
    assert shell.stdout is not None
    rank = int(shell.stdout.readline().split()[1])
    time.sleep(2.5)
    os.kill(rank, signal.SIGUSR2)
    assert shell.stdout.readline() == "SIGUSR2\n"


@pytest.mark.parametrize(
    ("command_line", "expected"),
    [
        (["/venv/bin/python", "/venv/bin/deepspeed", "--num_accelerators", "2", "train.py"], True),
        (["/usr/bin/python3.11", "-u", "-m", "deepspeed.launcher.launch", "--world_info=x", "train.py"], True),
        (["python", "/venv/bin/torchrun", "--nproc-per-node", "2", "train.py"], True),
        (["python", "-m", "torch.distributed.run", "train.py"], True),
        (["bash", "-c", "deepspeed train.py"], False),
        (["-bash"], False),
        (["make", "deepspeed"], False),
        (["python", "-m", "pytest", "deepspeed"], False),
        (["python", "train.py", "torchrun"], False),
        ([], False),
    ],
)
def test_launchers_are_known_by_what_they_run(command_line: Sequence[str], expected: bool) -> None:
    assert is_launcher(command_line) == expected
