"""Runs that had begun and cannot go on now: what is an outage, which passes, and what a mistake."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.config import dump_config, load_config
from pretrain.outcome import next_attempt, read_outcome, write_outcome

ROOT = Path(__file__).resolve().parents[2]
TRAIN = str(ROOT / "pretrain" / "train.py")


@pytest.fixture
def run_yaml(tmp_path: Path, write_run: Callable[..., Path]) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture
def earlier_run(run_yaml: Path) -> Path:
    """A run folder that was started with the file."""
    folder = run_yaml.with_suffix("")
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(load_config(run_yaml)))
    return folder


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | environment
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(("override", "code"), [("data.corpus=nowhere", 2), ("run.seed=1", 75)])
def test_a_run_that_was_stopped_and_is_refused_now(run_yaml: Path, earlier_run: Path, override: str, code: int) -> None:
    """Its outcome says so, lest whoever goes by that starts it for ever; that of another run stays."""
    write_outcome(earlier_run, next_attempt(earlier_run).with_end(75, 3, "SIGUSR1"))
    refused = run(sys.executable, TRAIN, "--config", str(run_yaml), override)
    outcome = read_outcome(earlier_run)
    assert (refused.returncode, outcome.code, outcome.attempt) == (2, code, 2 if code == 2 else 1)
    assert code == 75 or refused.stderr == f"error: {outcome.message}\n"


@pytest.mark.parametrize(("worker", "known", "code"), [(False, False, 2), (True, False, 1), (False, True, 1)])
def test_a_run_folder_that_is_lost_between_two_starts(
    run_yaml: Path, earlier_run: Path, worker: bool, known: bool, code: int
) -> None:
    """What was used before is an outage, which passes; one for a new run is a mistake."""
    if not known:
        (earlier_run / "config.yaml").unlink()
    if subprocess.run(["mount", "--bind", earlier_run, earlier_run], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", earlier_run], check=True)
        environment = {"PERCEIVER_WORKER": str(run_yaml)} if worker else {}
        done = run(sys.executable, TRAIN, "--config", str(run_yaml), **environment)
    finally:
        subprocess.run(["umount", "--lazy", earlier_run], check=True)
    assert done.returncode == code, done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        f"error: run.dir: {earlier_run} cannot be written (Read-only file system)"
    )


def test_a_server_that_does_not_answer_is_no_bad_input(run_yaml: Path) -> None:
    """Nothing in the file is wrong, and another time may do."""
    patient = "from pretrain.corpus import cache; cache.Patience.__init__.__defaults__ = (2, 0.01, 5.0); "
    command = "import sys; from pretrain.errors import run_command; from pretrain.train import main; run_command(main)"
    url = "data.corpus=http://127.0.0.1:1/corpus"
    arguments = ("--config", str(run_yaml), url, f"data.cache.dir={run_yaml.parent}/cache")
    done = run(sys.executable, "-c", patient + command, *arguments, PYTHONPATH=str(ROOT))
    assert done.returncode == 1
    assert done.stderr.startswith("error: data.corpus: http://127.0.0.1:1/corpus/manifest.json: cannot be read")
    assert done.stderr.count("\n") == 1
