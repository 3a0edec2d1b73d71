"""`status` says how a run is, and exits with the run's own code."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pretrain.errors import InputError
from pretrain.outcome import next_attempt, read_outcome, write_outcome
from pretrain.status import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def status(capsys) -> Callable[..., tuple[int, dict[str, str], str]]:
    """status(run, options...) -> (exit code, rows by name, output)"""

    def status(run: Path, *options: str) -> tuple[int, dict[str, str], str]:
        code = main([str(run), *options])
        output = capsys.readouterr().out
        rows = dict(row for line in output.splitlines() if len(row := line.rstrip().split(maxsplit=1)) == 2)
        return code, rows, output

    return status


@pytest.fixture(scope="module")
def finished(tmp_path_factory, write_run, start_ranks, finish_ranks):
    """A run of 4 steps with checkpoints at 2 and 4, whose first 2 steps took ten seconds and the others one."""
    folder = tmp_path_factory.mktemp("status") / "run"
    config = write_run(folder, train__steps=4, checkpoint__every=2, evaluation__every=0)
    finish_ranks(start_ranks(["pretrain/train.py", "--config", config], 1))
    metrics = folder / "metrics.jsonl"
    seconds = {1: 5.0, 2: 10.0, 3: 10.5, 4: 11.0}
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    metrics.write_text("".join(json.dumps(r | {"seconds": seconds[r["step"]]}) + "\n" for r in records))
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def rewrite(run: Path, **fields: object) -> None:
    write_outcome(run, replace(read_outcome(run), **fields))


def running(run: Path, **fields: object) -> None:
    rewrite(run, outcome="running", code=None, ended=None, pid=os.getpid(), **fields)


def test_finished_run(run, status):
    code, rows, output = status(run, "--verify")
    assert code == 0, output
    assert rows["outcome"].startswith("done at 20") and rows["outcome"].endswith("exit code 0")
    assert rows["attempt"].startswith("1, started 20")
    assert rows["step"] == "4 of 4 (100.0%), 256 trained tokens"
    assert rows["rate"].startswith("0.364 steps/s")
    assert rows["skipped"] == "0 steps"
    assert "ETA" not in rows
    checkpoints = [line for line in output.splitlines() if "step-0000" in line]
    assert ["step-00000004" in checkpoints[0], "step-00000002" in checkpoints[1]] == [True, True]
    assert all(line.rstrip().endswith("whole") for line in checkpoints)


def test_damaged_checkpoint(run, status):
    manifest = run / "checkpoints" / "step-00000002" / "manifest.json"
    manifest.unlink()
    _, _, output = status(run, "--verify")
    [damaged] = [line for line in output.splitlines() if "step-00000002" in line]
    assert "manifest.json" in damaged


def test_running(run, status):
    running(run, attempt=3)
    code, rows, output = status(run)
    assert code == 0, output
    assert rows["outcome"] == f"running, pid {os.getpid()} on {socket.gethostname()}"
    assert rows["attempt"].startswith("3,")
    assert rows["ETA"] == "0:00:00"


def test_time_left(run, status):
    running(run)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("\n  steps: 4\n", "\n  steps: 404\n"))
    _, rows, _ = status(run)
    assert rows["step"].startswith("4 of 404 (1.0%)")
    assert rows["ETA"] == "0:18:20"  # 400 steps, 2.75 s each


def test_killed(run, status):
    ended = subprocess.Popen(["true"])
    ended.wait()
    running(run)
    rewrite(run, pid=ended.pid)
    code, rows, output = status(run)
    assert code == 1
    assert rows["outcome"] == "killed, exit code 1"
    assert f"pid {ended.pid} on {socket.gethostname()} is gone" in output


def test_another_process_with_the_pid_is_not_the_run(run, status):
    running(run, started="2026-01-01T00:00:00+00:00")
    assert status(run)[0] == 1


def test_run_on_another_host_counts_as_running(run, status):
    ended = subprocess.Popen(["true"])
    ended.wait()
    running(run, host="elsewhere")
    rewrite(run, pid=ended.pid)
    code, rows, _ = status(run)
    assert code == 0
    assert rows["outcome"] == f"running, pid {ended.pid} on elsewhere"


@pytest.mark.parametrize(("code", "outcome"), [(1, "failed"), (2, "bad_input"), (3, "aborted"), (75, "stopped")])
def test_exit_code_is_the_runs_own(run, status, code, outcome):
    write_outcome(run, read_outcome(run).with_end(code, 4, "what was wrong"))
    found, rows, output = status(run)
    assert found == code
    assert rows["outcome"].startswith(f"{outcome} at 20")
    assert "what was wrong" in output


def test_skipped_steps(run, status):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    records[3:3] = [{"kind": "skipped", "step": 4, "problem": "loss not finite", "loss": None, "samples": [12, 15]}]
    records = [record | {"skipped_steps": 1} if record["step"] == 4 else record for record in records]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert status(run)[1]["skipped"] == "1 step, the last in step 4: loss not finite"


def test_steps_skipped_since_the_last_logged_one_count(run, status):
    skipped = [{"kind": "skipped", "step": step, "problem": "loss not finite"} for step in (5, 6)]
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in skipped)
    assert status(run)[1]["skipped"] == "2 steps, the last in step 6: loss not finite"


def test_records_that_cannot_be_read(run, status):
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to("metrics.jsonl")
    code, rows, output = status(run)
    assert code == 0, output
    assert "metrics.jsonl: cannot be read (Too many levels of symbolic links)" in rows["step"]


def test_before_the_first_step(tmp_path, status):
    write_outcome(tmp_path, replace(next_attempt(tmp_path), pid=os.getpid()))
    code, rows, _ = status(tmp_path)
    assert code == 0
    assert rows["step"] == "none logged yet"
    assert rows["checkpoints"] == "none"


def test_as_a_command(tmp_path):
    command = [sys.executable, "pretrain/status.py", tmp_path / "typo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {tmp_path}/typo: not the directory of a run that was started, it has no outcome.json\n"
    )


@pytest.mark.parametrize("wrong", ["..", "checkpoints", "checkpoints/step-00000004"])
def test_run_directory_above_or_below_is_named(run, wrong):
    with pytest.raises(InputError, match=f"it has no outcome.json; did you mean {run}\\?$"):
        main([os.path.normpath(run / wrong)])


def test_damaged_outcome(run):
    (run / "outcome.json").write_text("{")
    with pytest.raises(InputError, match=r"run/outcome\.json: is damaged or cannot be read"):
        main([str(run)])


def test_stopped_run_says_how_to_go_on(run, status):
    write_outcome(run, read_outcome(run).with_end(75, 4, "SIGINT"))
    assert "SIGINT; the same command goes on\n" in re.sub(" +\n", "\n", status(run)[2])
