"""Under every launcher a run ends as asked, says how, loses nothing and leaves no process behind."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pretrain.distributed.attempt import WORKER
from pretrain.outcome import Outcome, read_outcome

ROOT = Path(__file__).parents[2]
CRASHING = Path(__file__).with_name("crashing_train.py")
LAUNCHERS_OWN = {"-m", "--nproc-per-node", "--num_accelerators"}
"""Options that no rank has on its command line."""
TIMED = {"seconds", "tokens_per_second", "mfu", "data_wait", "memory_gib"}

LAUNCHERS = {
    "python": (sys.executable,),
    "torchrun": (Path(sys.executable).with_name("torchrun"), "--nproc-per-node", "2", "--master-port", "PORT"),
    "deepspeed": (
        *(Path(sys.executable).with_name("deepspeed"), "--quiet", "--num_accelerators", "2"),
        *("--master_port", "PORT"),
    ),
}


class Launched:
    """A run under a launcher; the path of its configuration, in every command line, finds its processes."""

    def __init__(self, launcher: str, config: Path, *options: str, script: tuple = ("pretrain/train.py",)) -> None:
        self.config, self.run_dir = config, config.with_suffix("")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        words = [port if word == "PORT" else word for word in LAUNCHERS[launcher]]
        environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        # In a session of its own, as from a terminal: a signal to its group is a Ctrl-C.
        self.output = config.with_suffix(".log")
        self.top = subprocess.Popen(
            [*words, *script, "--config", config, *options],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=self.output.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def processes(self) -> list[psutil.Process]:
        """All that are left."""
        found = []
        for process in psutil.process_iter():
            try:
                if str(self.config) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def find(self, role: str) -> psutil.Process:
        """``top``, ``launch.py`` below `deepspeed`, ``supervisor N`` or ``rank N`` (its worker, if supervised)."""
        if role == "top":
            return psutil.Process(self.top.pid)
        if role == "launch.py":
            return next(p for p in self.processes() if "deepspeed.launcher.launch" in p.cmdline())
        kind, rank = role.split()
        for process in self.processes():
            environment = process.environ()
            if environment.get("RANK", "0") == rank and not LAUNCHERS_OWN & set(process.cmdline()):
                is_supervisor = "--max-restarts" in process.cmdline() and WORKER not in environment
                if is_supervisor == (kind == "supervisor"):
                    return process
        raise LookupError(role)

    def wait_for_step(self, step: int) -> None:
        wait_until(lambda: any(r["step"] >= step for r in records(self.run_dir)) or self.top.poll() is not None)
        assert self.top.poll() is None, self.output.read_text()

    def wait_for_all(self, seconds: float = 120) -> Outcome:
        """Until no process is left."""
        wait_until(lambda: self.top.poll() is not None and not self.processes(), seconds, self.output)
        outcome = read_outcome(self.run_dir)
        assert outcome is not None
        return outcome

    def kill(self) -> None:
        for process in self.processes():
            process.kill()
        self.top.wait()


def wait_until(condition: Callable[[], bool], seconds: float = 180, log: Path | None = None) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log and log.read_text()
        time.sleep(0.1)


def records(run_dir: Path) -> list[dict]:
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [{k: v for k, v in json.loads(line).items() if k not in TIMED} for line in lines if line.endswith("\n")]


def saved_steps(run_dir: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run_dir / "checkpoints").glob("step-*"))


@pytest.fixture
def launch(tmp_path, write_run) -> Iterator[Callable[..., Launched]]:
    """launch(launcher, options..., fields of the configuration) -> Launched, killed at the end."""
    launched = []

    def launch(launcher: str, *options: str, script: tuple = ("pretrain/train.py",), **fields: object) -> Launched:
        config = write_run(tmp_path / f"run{len(launched)}", **{"train__micro_batch": 1} | fields)
        launched.append(Launched(launcher, config, *options, script=script))
        return launched[-1]

    yield launch
    for run in launched:
        run.kill()


LONG = {"train__steps": 100_000, "checkpoint__every": 0, "evaluation__every": 0}
SUPERVISED = ("--max-restarts", "3")


def check_stopped(run: Launched) -> None:
    """It has ended on request, with all it has done in its newest checkpoint."""
    outcome = run.wait_for_all()
    assert (outcome.outcome, outcome.code) == ("stopped", 75), run.output.read_text()
    last = records(run.run_dir)[-1]["step"]
    assert saved_steps(run.run_dir) == [last]


IN_FAST_SET = (("torchrun", "top", signal.SIGUSR1), ("deepspeed", "launch.py", signal.SIGKILL))
SIGNALLED = [
    *(("python", "top", number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)),
    *(
        (launcher, "top", number)
        for launcher in ("torchrun", "deepspeed")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGKILL)
    ),
    *(("deepspeed", "launch.py", number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGKILL)),
    *(
        (launcher, "rank 1", number)
        for launcher in ("torchrun", "deepspeed")
        for number in (signal.SIGTERM, signal.SIGUSR1)
    ),
]


@pytest.mark.parametrize(
    ("launcher", "role", "number"),
    [pytest.param(*case, marks=() if case in IN_FAST_SET else pytest.mark.slow) for case in SIGNALLED],
)
def test_signals(launch, launcher, role, number):
    run = launch(launcher, **LONG)
    run.wait_for_step(3)
    run.find(role).send_signal(number)
    check_stopped(run)


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "role", "number"), SIGNALLED)
def test_signals_with_supervisors(launch, launcher, role, number):
    run = launch(launcher, *SUPERVISED, **LONG)
    run.wait_for_step(3)
    run.find(role).send_signal(number)
    check_stopped(run)


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), SUPERVISED], ids=["bare", "supervised"])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ctrl_c(launch, launcher, options):
    run = launch(launcher, *options, **LONG)
    run.wait_for_step(3)
    os.killpg(run.top.pid, signal.SIGINT)
    check_stopped(run)


def test_signal_before_the_first_step(launch):
    run = launch("python", **LONG)
    wait_until(lambda: read_outcome(run.run_dir) is not None)
    run.top.terminate()
    outcome = run.wait_for_all()
    assert run.top.returncode == 75, run.output.read_text()
    assert (outcome.outcome, outcome.message) == ("stopped", "SIGTERM")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_killed_supervisor(launch, launcher):
    run = launch(launcher, *SUPERVISED, **LONG)
    run.wait_for_step(3)
    run.find("supervisor 0").kill()
    check_stopped(run)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_killed_rank_ends_the_others(launch, launcher, rank):
    run = launch(launcher, **LONG)
    run.wait_for_step(3)
    victim = run.find(f"rank {rank}")
    victim.kill()
    outcome = run.wait_for_all()
    if rank == 0:
        assert outcome.outcome == "running" and outcome.pid == victim.pid  # it could not say more
    else:
        assert outcome.outcome == "failed"
        assert f"rank 1 (host {outcome.host}, pid {victim.pid})" in outcome.message


STEPS = {"train__steps": 12, "checkpoint__every": 3}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, write_run, start_ranks, finish_ranks) -> Callable[[int], Path]:
    """undisturbed(ranks) -> the folder of a run of `STEPS`."""

    @functools.cache
    def undisturbed(ranks: int) -> Path:
        folder = tmp_path_factory.mktemp("undisturbed") / "run"
        config = write_run(folder, train__micro_batch=1, **STEPS)
        finish_ranks(start_ranks(["pretrain/train.py", "--config", config], ranks))
        return folder

    return undisturbed


@pytest.mark.parametrize(
    ("launcher", "rank"),
    [
        ("python", 0),
        *(
            pytest.param(launcher, rank, marks=pytest.mark.slow)
            for launcher in ("torchrun", "deepspeed")
            for rank in (0, 1)
        ),
    ],
)
def test_restarted_run_is_the_undisturbed_one(launch, undisturbed, tmp_path, launcher, rank):
    crash = f"{rank}:8:{tmp_path / 'crashed'}"
    run = launch(launcher, *SUPERVISED, script=(CRASHING, crash), **STEPS)
    outcome = run.wait_for_all(240)
    assert (tmp_path / "crashed").exists()
    assert (outcome.outcome, outcome.code, outcome.attempt) == ("done", 0, 2), run.output.read_text()
    assert run.top.returncode == 0
    assert "failed in step 8" in run.output.read_text()
    expected = undisturbed(1 if launcher == "python" else 2)
    assert records(run.run_dir) == records(expected)
    last = Path("checkpoints", "step-00000012")
    files = sorted(path.name for path in (expected / last).glob("*.safetensors"))
    assert files
    for file in files:
        assert (run.run_dir / last / file).read_bytes() == (expected / last / file).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_step_that_always_fails_is_given_up(launch, launcher):
    run = launch(launcher, "--max-restarts", "9", script=(CRASHING, "0:5:"), **STEPS)
    outcome = run.wait_for_all(240)
    assert (outcome.outcome, outcome.code, outcome.step) == ("failed", 1, 5), run.output.read_text()
    assert outcome.attempt == 3
    assert f"pretrain/replay.py --run {run.run_dir} --step 5" in outcome.message
    assert saved_steps(run.run_dir) == [3]
