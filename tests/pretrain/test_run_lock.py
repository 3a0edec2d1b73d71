import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretrain import run_lock
from pretrain.errors import FAILED, Unavailable
from pretrain.run_lock import hold_run

ROOT = Path(__file__).parents[2]
HOLDER = "import sys, time, pathlib; from pretrain.run_lock import hold_run; hold_run(pathlib.Path(sys.argv[1]))"


def hold_elsewhere(run: Path) -> subprocess.Popen[str]:
    """A process that holds a run, once it does."""
    command = [sys.executable, "-c", f"{HOLDER}; print('held', flush=True); time.sleep(100)", run]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_run_in_use_is_refused_until_its_process_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "LAST_MOMENTS", 1.0)
    run = tmp_path / "new" / "run"
    holder = hold_elsewhere(run)
    try:
        with pytest.raises(Unavailable, match=rf"^run\.dir: {run} is in use; wait for its end, or choose another$"):
            hold_run(run)
        outcome = {"outcome": "running", "attempt": 1, "host": "n7", "pid": 12, "started": "2026-01-01T00:00:00+00:00"}
        (run / "outcome.json").write_text(json.dumps(outcome))
        with pytest.raises(Unavailable, match="is in use by process 12 on n7; wait"):
            hold_run(run)
    finally:
        holder.kill()
        holder.communicate()
    hold_run(run)


def test_a_process_that_is_just_ending_is_waited_for(tmp_path):
    holder = hold_elsewhere(tmp_path)
    ending = subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(1); os.kill({holder.pid}, 9)"])
    started = time.monotonic()
    hold_run(tmp_path)
    assert time.monotonic() - started > 0.5
    ending.wait()
    holder.communicate()


def test_a_folder_that_cannot_be_written_does_not_keep_a_run_from_starting():
    hold_run(Path("/proc/run"))


def test_a_second_start_leaves_the_outcome_of_the_first_alone(tmp_path, write_run):
    config = write_run(tmp_path / "run")
    command = [sys.executable, "pretrain/train.py", "--config", config]
    subprocess.run([*command, "train.steps=3"], cwd=ROOT, check=True, capture_output=True)
    before = (tmp_path / "run" / "outcome.json").read_text()
    holder = hold_elsewhere(tmp_path / "run")
    try:
        starts = [
            subprocess.Popen(
                [*command, *options], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            for options in ([], ["--max-restarts", "3"], ["data.corpus=nowhere"])
        ]
        for start in starts:
            _, errors = start.communicate()
            assert start.returncode == FAILED
            assert "is in use by process" in errors.splitlines()[-1]
    finally:
        holder.kill()
        holder.communicate()
    assert (tmp_path / "run" / "outcome.json").read_text() == before


def test_a_worker_that_outlives_its_supervisor_keeps_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "LAST_MOMENTS", 0.5)
    worker = "import os, time; print(os.getpid(), flush=True); time.sleep(100)"
    supervise = f"import subprocess; subprocess.run([sys.executable, '-c', {worker!r}], close_fds=False)"
    supervisor = subprocess.Popen(
        [sys.executable, "-c", f"{HOLDER}; {supervise}", tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert supervisor.stdout is not None
    pid = int(supervisor.stdout.readline())
    supervisor.kill()
    supervisor.wait()
    with pytest.raises(Unavailable):
        hold_run(tmp_path)
    os.kill(pid, signal.SIGKILL)
    monkeypatch.setattr(run_lock, "LAST_MOMENTS", 10.0)
    hold_run(tmp_path)
