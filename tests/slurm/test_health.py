import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

HEALTH = Path(__file__).resolve().parents[2] / "slurm" / "health.py"


@pytest.fixture
def check(tmp_path):
    """check(*options, **environment) -> (exit code, stdout, stderr) of the check with `tmp_path` as run directory."""

    def check(*options: object, run: Path = tmp_path, **environment: str) -> tuple[int, str, str]:
        small = {"SLURMD_NODENAME": "n7", "HEALTH_DISK_GIB": "0", "HEALTH_MEMORY_GIB": "0"}
        command = [sys.executable, HEALTH, "--run", run, *map(str, options)]
        finished = subprocess.run(command, env=os.environ | small | environment, capture_output=True, text=True)
        return finished.returncode, finished.stdout, finished.stderr

    return check


def test_healthy_node_says_its_name(check):
    assert check("--clock", time.time(), HEALTH_COMMAND="true") == (0, "n7\n", "")


def test_every_problem_is_named(check, tmp_path):
    environment = {"HEALTH_DISK_GIB": "1e9", "HEALTH_MEMORY_GIB": "1e6", "HEALTH_COMMAND": "echo no link on ib0; false"}
    code, output, errors = check("--clock", time.time() + 300, **environment)
    assert (code, output) == (1, "")
    clock, memory, run, temporary, site = errors.splitlines()
    assert clock in [f"n7: clock: {seconds} s behind that of the job's first node" for seconds in range(290, 301)]
    assert memory.startswith("n7: memory: ") and memory.endswith(" GiB available, not 1e+06")
    assert run.startswith("n7: disk: ") and run.endswith(f" GiB free in {tmp_path}, not 1e+09")
    assert temporary.startswith("n7: disk: ")
    assert site == "n7: HEALTH_COMMAND: no link on ib0"


def test_run_directory_that_cannot_be_written_is_a_problem(check, tmp_path):
    code, _, errors = check(run=tmp_path / "unmounted")
    assert (code, errors) == (1, f"n7: disk: {tmp_path}/unmounted cannot be written (No such file or directory)\n")


def test_gpus_that_do_not_answer_are_a_problem(check):
    code, _, errors = check(SLURM_GPUS_ON_NODE="99")
    assert code == 1
    assert errors.startswith("n7: GPUs: ") and errors.endswith(" answer, not 99\n")


def test_limit_that_is_no_number_is_told_in_a_line(check):
    assert check(HEALTH_MEMORY_GIB="x") == (1, "", "n7: HEALTH_MEMORY_GIB: must be a number of GiB, not 'x'\n")
