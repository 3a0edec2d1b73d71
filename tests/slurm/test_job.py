"""What a job does around training on a real SLURM: health check, queueing itself again, giving up."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from pretrain.config import load_config
from slurm.submit import ROOT, freeze, job_name, submit
from tests.slurm.cluster import Cluster

STAND_IN = Path(__file__).with_name("stand_in.py")
SMALL = ["--gpus-per-node=0", "--cpus-per-task=1", "--ntasks-per-node=1"]


class Job(NamedTuple):
    number: str
    run: Path
    slurm: Cluster

    def log(self) -> str:
        path = self.run / f"slurm-{self.number}.log"
        return path.read_text() if path.exists() else ""

    def wait_for(self, text: str) -> None:
        self.slurm.wait(f"{text!r} in the log", lambda: text in self.log())

    def end(self) -> tuple[str, str, int]:
        """(state, exit code, attempts), once it has ended for good."""
        job = self.slurm.finish(self.number, 120)
        assert job["JobState"] != "PENDING", self.log()
        return job["JobState"], job["ExitCode"].split(":")[0], 1 + int(job["Restarts"])


@pytest.fixture
def start(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Job]:
    """start(template, plan, *options) submits runs that do what `stand_in` describes, all by the same plan."""
    monkeypatch.setenv("HEALTH_DISK_GIB", "0")
    monkeypatch.setenv("HEALTH_MEMORY_GIB", "0")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def start(template: str, plan: list[str], *options: str, tasks: int = 1) -> Job:
        model = {"vocab_size": 262, "max_seq_len": 48, "max_latents": 16, "num_channels": 32, "num_heads": 4}
        train = {"steps": 1, "global_batch": 4, "micro_batch": 2}
        config = {"model": model | {"num_layers": 1}, "data": {"corpus": "none"}, "train": train}
        home = tmp_path / "run"
        runs = []
        for number in range(1, 1 + tasks):
            folder = home / str(number) if tasks > 1 else home
            (tmp_path / "run.yaml").write_text(json.dumps(config | {"run": {"dir": str(folder)}}))
            runs.append(load_config(tmp_path / "run.yaml"))
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "plan").write_text("\n".join(plan))
        submission = freeze(runs, home)
        shutil.copy(STAND_IN, submission / "pretrain" / "train.py")
        log = "slurm-%A_%a.log" if tasks > 1 else "slurm-%j.log"
        arguments = [f"--job-name={job_name(home)}", f"--output={home / log}", *SMALL, *options]
        return Job(submit(ROOT / "slurm" / f"{template}.sbatch", submission, arguments), home, slurm)

    return start


def test_job_stopped_with_a_checkpoint_goes_on(start, slurm):
    job = start("many_nodes", ["wait save 75", "0"], "--nodes=2", "--cpus-per-task=2")
    job.wait_for("rank RANK=0")
    job.wait_for("rank RANK=1")
    slurm.run("scancel", "--signal=USR1", job.number)
    assert job.end() == ("COMPLETED", "0", 2)
    log = job.log()
    assert log.count("received SIGUSR1") == 2
    assert "=== attempt 1 of job" in log and "newest checkpoint: none" in log
    assert "=== attempt 2 of job" in log and "newest checkpoint: step-00000001" in log
    port = 10000 + int(job.number) % 20000
    for rank in range(2):
        place = f"MASTER_ADDR=127.0.0.1 MASTER_PORT={port} OMP_NUM_THREADS=2"
        assert log.count(f"rank RANK={rank} LOCAL_RANK=0 WORLD_SIZE=2 {place} SLURMD_NODENAME=n") == 2


@pytest.mark.parametrize("code", [2, 3])
def test_job_that_is_ended_by_its_own_fault_is_not_queued_again(start, code):
    job = start("one_node", [f"{code}"])
    assert job.end() == ("FAILED", str(code), 1)
    assert f"ended with code {code}" in job.log()


@pytest.mark.slow
def test_job_gives_up_after_three_attempts_without_a_checkpoint(start):
    job = start("one_node", ["save 1", "1", "75", "137", "0"])
    # The second to fourth attempt began from the same checkpoint.
    assert job.end() == ("FAILED", "137", 4)
    assert "gave up: 3 attempts in a row have added no checkpoint" in job.log()


def test_cancelled_job_saves_and_stays_cancelled(start, slurm):
    job = start("one_node", ["wait save 75"])
    job.wait_for("rank RANK=0")
    slurm.run("scancel", job.number)
    assert job.end() == ("CANCELLED", "75", 1)
    assert "received SIGTERM" in job.log()
    assert (job.run / "checkpoints" / "step-00000001").exists()


@pytest.mark.slow
def test_preempted_job_saves_and_goes_on(start, slurm):
    job = start("one_node", ["wait save 75", "0"], "--exclusive")
    job.wait_for("rank RANK=0")
    node = slurm.job(job.number)["NodeList"]
    slurm.run("srun", "--partition=urgent", f"--nodelist={node}", "--exclusive", "true")
    assert job.end() == ("COMPLETED", "0", 2)
    assert "received SIGTERM" in job.log()
    assert "newest checkpoint: step-00000001" in job.log()


def test_job_that_may_not_be_queued_again_ends_saved(start, slurm):
    job = start("one_node", ["wait save 75"])
    job.wait_for("rank RANK=0")
    slurm.run("scontrol", "update", f"JobId={job.number}", "Requeue=0")
    slurm.run("scancel", "--signal=USR1", job.number)
    assert job.end() == ("FAILED", "75", 1)


def test_two_jobs_never_write_to_one_run(start, slurm):
    first = start("one_node", ["wait 3"])
    first.wait_for("rank RANK=0")
    second = start("one_node", ["3"])
    assert slurm.job(second.number)["Reason"] == "Dependency"
    slurm.run("scancel", "--signal=USR1", first.number)
    assert second.end() == ("FAILED", "3", 1)


def test_sick_node_is_named_and_avoided(start, slurm, tmp_path, monkeypatch):
    # The first node that asks is sick for good.
    sick = tmp_path / "sick"
    monkeypatch.setenv(
        "HEALTH_COMMAND", f"set -C; echo $SLURMD_NODENAME >{sick}; [ $(cat {sick}) != $SLURMD_NODENAME ]"
    )
    job = start("many_nodes", ["", "0"], "--nodes=2")
    assert job.end() == ("COMPLETED", "0", 2)
    node = sick.read_text().strip()
    assert f"{node}: HEALTH_COMMAND: exit code 1" in job.log()
    assert f"failed the health check: {node}\n" in job.log()
    assert f"SLURMD_NODENAME={node}" not in job.log()
    assert slurm.job(job.number)["ExcNodeList"] == node


def test_each_task_of_a_sweep_is_queued_again_by_itself(start, slurm):
    job = start("sweep", ["save 75", "0"], "--array=1-3", tasks=3)
    for task in (1, 2, 3):
        assert job._replace(number=f"{job.number}_{task}").end() == ("COMPLETED", "0", 2)
