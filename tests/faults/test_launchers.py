"""Whatever is killed under whichever launcher, no process stays behind and the run goes on."""

import random
import signal
import time

import pytest

from pretrain.checkpoint import checkpoints_of, step_of
from pretrain.errors import STOPPED
from tests.faults.runs import assert_same, records
from tests.pretrain.test_launch import LONG, Launched, launch  # noqa: F401 (a fixture)

pytestmark = pytest.mark.faults

SUPERVISED = ("--max-restarts", "9")
SIGNALLED = [
    (launcher, options, role, number)
    for options in ((), SUPERVISED)
    for launcher, role, number in (
        ("deepspeed", "top", signal.SIGKILL),
        ("deepspeed", "top", signal.SIGTERM),
        ("deepspeed", "launch.py", signal.SIGKILL),
        ("deepspeed", "launch.py", signal.SIGTERM),
        ("torchrun", "top", signal.SIGKILL),
        ("torchrun", "top", signal.SIGTERM),
        ("python", "top", signal.SIGTERM),
    )
]
FIELDS = {"train__steps": 200, "train__micro_batch": 1, "checkpoint__every": 5}


@pytest.mark.parametrize(("launcher", "options", "role", "number"), SIGNALLED)
def test_signalled_launcher(launch, survived, launcher, options, role, number):  # noqa: F811
    run = launch(launcher, *options, **LONG)
    run.wait_for_step(3)
    run.find(role).send_signal(number)
    outcome = run.wait_for_all()
    assert (outcome.outcome, outcome.code) == ("stopped", STOPPED), run.output.read_text()
    assert step_of(checkpoints_of(run.run_dir)[0]) == records(run.run_dir)[-1]["step"]
    which = "its launch.py" if role == "launch.py" else "the top process"
    survived(
        f"{number.name} to {which} of {launcher}{', with --max-restarts' if options else ''}",
        "all ranks stopped with a checkpoint, no process left, outcome.json says so",
    )


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_killed_again_and_again(launch, undisturbed, survived, launcher):  # noqa: F811
    """Unattended: supervisors start the ranks again."""
    rng = random.Random(launcher)
    run = launch(launcher, *SUPERVISED, **FIELDS)
    for kill in range(1, 4):
        run.wait_for_step(50 * kill)
        time.sleep(rng.random() / 2)
        run.find(f"rank {rng.randrange(2)}").kill()
    outcome = run.wait_for_all(240)
    assert (outcome.outcome, outcome.code) == ("done", 0), run.output.read_text()
    assert outcome.attempt == 4
    assert_same(run.run_dir, undisturbed(2, **FIELDS))
    survived(
        f"kill -9 of a rank, three times, under {launcher} with --max-restarts",
        "ended by itself, bitwise as if undisturbed",
    )
