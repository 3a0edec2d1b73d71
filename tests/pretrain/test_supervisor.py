"""A supervisor restarts what may succeed another time, mirrors what is final, and leaves nobody behind."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from pretrain.outcome import next_attempt, read_outcome, write_outcome

ROOT = Path(__file__).parents[2]
SUPERVISED = Path(__file__).with_name("supervised.py")


def start(folder: Path, plan: list, restarts: int = 5, above: tuple = (), **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *above, SUPERVISED, folder, str(restarts), json.dumps(plan)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def workers(folder: Path) -> list[int]:
    """Process ids of all workers there have been."""
    return [int(line) for line in (folder / "workers").read_text().split()]


@pytest.mark.parametrize("code", [0, 2, 3, 75])
def test_final_codes_are_mirrored(tmp_path, code):
    assert start(tmp_path, [[5, code]]).wait(60) == code
    assert len(workers(tmp_path)) == 1
    assert read_outcome(tmp_path).code == code


def test_the_outcome_of_an_earlier_invocation_is_not_this_ones(tmp_path):
    """A worker that says nothing itself: it was refused before the run, or had no time."""
    write_outcome(tmp_path, next_attempt(tmp_path).with_end(75, 8, "SIGUSR1"))
    assert start(tmp_path, [[None, 1], [None, 2]]).wait(60) == 2
    outcome = read_outcome(tmp_path)
    assert (outcome.outcome, outcome.code, outcome.attempt) == ("bad_input", 2, 2)
    process = start(tmp_path, [[None, 0], [None, 0], [None, "sleep"]])
    wait_until((tmp_path / "ready").exists)
    process.terminate()
    assert process.wait(60) == 75
    outcome = read_outcome(tmp_path)
    assert (outcome.outcome, outcome.message, outcome.attempt) == ("stopped", "SIGTERM", 3)


def test_failures_are_started_again(tmp_path):
    process = start(tmp_path, [[3, 1], [7, "kill"], [None, 143], [9, 0]])
    assert process.communicate(timeout=60)[1].splitlines() == [
        "warning: rank 0 failed in step 3 with code 1; restart 1 of 5",
        "warning: rank 0 failed in step 7, killed (SIGKILL); restart 2 of 5",
        "warning: rank 0 failed before its first step, killed (SIGTERM); restart 3 of 5",
    ]
    assert process.returncode == 0
    outcome = read_outcome(tmp_path)
    assert (outcome.outcome, outcome.code, outcome.step) == ("done", 0, 9)


def test_one_step_that_fails_three_times_in_a_row_ends_it(tmp_path):
    process = start(tmp_path, [[4, 1], [4, 1], [5, 1], [4, 1], [4, "kill"], [4, 1], [6, 0]], restarts=20)
    last = process.communicate(timeout=60)[1].splitlines()[-1]
    assert last == (
        "error: rank 0 failed in step 4 with code 1; given up, as it was the third time in a row: "
        f"python pretrain/replay.py --run {tmp_path} --step 4"
    )
    assert process.returncode == 1
    assert len(workers(tmp_path)) == 6
    outcome = read_outcome(tmp_path)
    assert (outcome.outcome, outcome.code, outcome.step) == ("failed", 1, 4)
    assert f"error: {outcome.message}" == last


def test_setup_that_fails_three_times_in_a_row_ends_it(tmp_path):
    process = start(tmp_path, [[None, 1]] * 4)
    assert process.communicate(timeout=60)[1].endswith(
        "error: rank 0 failed before its first step with code 1; given up, as it was the third time in a row\n"
    )
    assert process.returncode == 1


@pytest.mark.parametrize(("restarts", "words"), [(1, "1 restart"), (2, "2 restarts")])
def test_restarts_are_used_up(tmp_path, restarts, words):
    process = start(tmp_path, [[1, 1], [2, 1], [3, 1], [4, 0]], restarts=restarts)
    assert process.communicate(timeout=60)[1].endswith(f"; given up after {words}\n")
    assert process.returncode == 1
    assert read_outcome(tmp_path).outcome == "failed"


def test_pauses_grow(tmp_path):
    process = start(tmp_path, [[1, 1], [2, 1], [3, 0]], PAUSE="30")
    times = [time.monotonic()]
    for n in (1, 2, 3):
        wait_until(lambda n=n: (tmp_path / "workers").exists() and len(workers(tmp_path)) == n)
        times.append(time.monotonic())
    assert process.wait(60) == 0
    assert times[2] - times[1] >= 1
    assert times[3] - times[2] >= 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_are_passed_on(tmp_path, number):
    process = start(tmp_path, [[1, "serve"]])
    wait_until((tmp_path / "ready").exists)
    process.send_signal(number)
    assert process.wait(60) == 75
    assert (tmp_path / "received").read_text() == number.name
    assert len(workers(tmp_path)) == 1


def test_signal_before_the_worker_handles_any(tmp_path):
    process = start(tmp_path, [[None, "sleep"]])
    wait_until((tmp_path / "ready").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert not psutil.pid_exists(workers(tmp_path)[0])


def test_worker_that_fails_on_being_stopped_is_not_started_again(tmp_path):
    process = start(tmp_path, [[None, "sleep"], [1, 0]])
    wait_until((tmp_path / "ready").exists)
    process.send_signal(signal.SIGTERM)
    with suppress(ProcessLookupError):  # whichever of the two comes first
        os.kill(workers(tmp_path)[0], signal.SIGKILL)
    assert process.wait(60) in (75, 137)
    assert len(workers(tmp_path)) == 1


def test_signal_between_two_workers(tmp_path):
    process = start(tmp_path, [[1, 1], [2, 1], [3, 1], [4, 1], [5, 0]], PAUSE="30")
    wait_until(lambda: (o := read_outcome(tmp_path)) is not None and o.outcome == "restarting")
    assert read_outcome(tmp_path).pid == process.pid
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 75
    outcome = read_outcome(tmp_path)
    assert (outcome.outcome, outcome.code, outcome.message) == ("stopped", 75, "SIGUSR1")


def test_no_restart_below_a_dead_launcher(tmp_path):
    launcher = tmp_path / "torchrun"
    launcher.write_text("import subprocess, sys\nsubprocess.run([sys.executable, *sys.argv[1:]])\n")
    process = start(tmp_path, [[1, "fail"], [2, 0]], above=(launcher,))
    wait_until((tmp_path / "ready").exists)
    [supervisor] = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    (tmp_path / "fail").touch()
    supervisor.wait(60)
    assert len(workers(tmp_path)) == 1
    assert f"the launcher (pid {process.pid}) is gone" in read_outcome(tmp_path).message


def test_a_supervisor_needs_no_torch(tmp_path):
    process = start(tmp_path, [[1, "serve"]])
    wait_until((tmp_path / "ready").exists)
    assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
    process.terminate()
    process.wait(60)


def test_number_of_restarts_is_checked():
    command = [sys.executable, "pretrain/train.py", "--config", "configs/demo.yaml", "--max-restarts", "-1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "error: --max-restarts: must be at least 0, not -1\n"
