"""Real training as jobs on a real SLURM, submitted by the command."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from slurm.submit import CODE, ROOT
from tests.faults.runs import assert_same, records
from tests.pretrain.conftest import finish_ranks, start_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SMALL = ("--gpus-per-node=0", "--cpus-per-task=1", "--ntasks-per-node=1")
FOREVER = {"train__steps": 1_000_000, "schedule__kind": "constant", "train__micro_batch": 1, "evaluation__every": 0}
TRAIN = ("pretrain/train.py", "--config")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEALTH_DISK_GIB", "1")
    monkeypatch.setenv("HEALTH_MEMORY_GIB", "1")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A working tree to submit from."""
    for name in CODE:
        shutil.copytree(ROOT / name, tmp_path / "tree" / name)
    return tmp_path / "tree"


def submit(tree: Path, *arguments: object) -> str:
    command = [sys.executable, tree / "slurm" / "submit.py", *arguments]
    finished = subprocess.run(list(map(str, command)), cwd=tree, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.split()[1].rstrip(":")


def trained_steps(run: Path) -> int:
    return records(run)[-1]["step"] if (run / "metrics.jsonl").exists() and records(run) else 0


def minutes(clock: str) -> int:
    """Whole minutes of SLURM's ``hours:minutes:seconds``."""
    hours, minutes, _ = map(int, clock.split(":"))
    return 60 * hours + minutes


def test_run_survives_its_time_limit_as_if_undisturbed(slurm, tree, tmp_path, write_run):
    run, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    config = write_run(run, checkpoint__every=0, **FOREVER)
    job = submit(tree, "many_nodes", "--config", config, "--", "--nodes=2", *SMALL, "--time=60", "--signal=USR1@90")

    # Whatever happens to the files that were submitted does not change the job.
    config.unlink()
    for name in CODE:
        shutil.rmtree(tree / name)
    slurm.wait("steps", lambda: trained_steps(run) > 3, 240)
    slurm.run("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes(slurm.job(job)['RunTime']) + 2}")
    slurm.wait("the job to be queued again", lambda: slurm.job(job)["Restarts"] == "1", 120)
    slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")

    # The first attempt has trained as far as this machine could: the second is to end soon.
    stopped = trained_steps(run)
    frozen = run / "submissions" / "001" / "1.yaml"
    frozen.write_text(frozen.read_text().replace("steps: 1000000", f"steps: {stopped + 5}"))
    ended = slurm.finish(job, 240)
    log = (run / f"slurm-{job}.log").read_text()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), log
    assert f"newest checkpoint: step-{stopped:08d}" in log

    expected = write_run(undisturbed, checkpoint__every=0, **FOREVER | {"train__steps": stopped + 5})
    finish_ranks(start_ranks([*TRAIN, expected], 2))
    assert_same(run, undisturbed)


def test_killed_rank_is_restarted_within_the_job_and_a_cancelled_job_saves(slurm, tree, tmp_path, write_run):
    run = tmp_path / "run"
    config = write_run(run, checkpoint__every=5, **FOREVER)
    job = submit(tree, "many_nodes", "--config", config, "--", "--nodes=2", *SMALL)
    slurm.wait("a checkpoint", lambda: trained_steps(run) > 6, 240)
    [rank] = [process for process in slurm.processes() if is_worker(process.environ(), rank=1)]
    rank.kill()
    killed = trained_steps(run)
    slurm.wait("more steps", lambda: trained_steps(run) > killed + 20, 240)
    slurm.run("scancel", job)
    ended = slurm.finish(job, 60)
    log = (run / f"slurm-{job}.log").read_text()
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0"), log
    assert len(re.findall("restart 1 of 3", log)) == 2, log
    assert (run / "checkpoints" / f"step-{trained_steps(run):08d}").exists(), log
    assert json.loads((run / "outcome.json").read_text())["outcome"] == "stopped"


def is_worker(environment: dict[str, str], rank: int) -> bool:
    return "PERCEIVER_WORKER" in environment and environment["SLURM_PROCID"] == str(rank)


def test_sweep_trains_a_run_for_each_line(slurm, tree, tmp_path, write_run):
    config = write_run(tmp_path / "rates", train__steps=4, schedule__warmup_steps=0)
    rates = [1e-2, 1e-3, 1e-4]
    (tmp_path / "lines.txt").write_text("".join(f"optimizer.lr={rate}\n" for rate in rates))
    job = submit(tree, "sweep", "--config", config, "--sweep", tmp_path / "lines.txt", "--", *SMALL)
    for task, rate in enumerate(rates, start=1):
        ended = slurm.finish(f"{job}_{task}", 240)
        assert ended["JobState"] == "COMPLETED", (tmp_path / "rates" / f"slurm-{job}_{task}.log").read_text()
        first = records(tmp_path / "rates" / str(task))[0]
        assert (first["step"], first["lr"]) == (1, pytest.approx(rate, rel=0.2))
        assert trained_steps(tmp_path / "rates" / str(task)) == 4
