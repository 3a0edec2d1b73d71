"""A request to stop, at whatever moment, ends the run with a checkpoint of its last step; the command goes on."""

import itertools
import signal
import time
from functools import partial

import pytest

from pretrain.checkpoint import checkpoints_of, step_of
from pretrain.errors import DONE, FAILED, STOPPED
from tests.faults.crew import start
from tests.faults.phases import PHASES, At, send
from tests.faults.runs import assert_same, records

FIELDS = {"train__steps": 12, "train__micro_batch": 1, "evaluation__every": 4, "checkpoint__every": 3}
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
SET_UP = ("joining", "opening the data", "verifying checkpoints", "building the model", "starting DeepSpeed")
RANK_0_ONLY = ("publishing", "pruning")
ENTRIES = {phase: 1 for phase in SET_UP} | {"leaving": 1, "validation": 2, "publishing": 1, "pruning": 1}
"""Which entry into a phase the signal comes at, where it is not the second."""
SHORT = [("update", signal.SIGUSR2), ("writing", signal.SIGTERM)]
SECONDS = 20
"""One step and one save take much less, even on a busy machine."""


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        pytest.param(*case, marks=() if case in SHORT else pytest.mark.faults)
        for case in itertools.product(PHASES, SIGNALS)
    ],
)
def test_signal(tmp_path, write_run, undisturbed, survived, phase, number):
    config = write_run(tmp_path / "run", **FIELDS)
    run = config.with_suffix("")
    rank = 0 if phase in RANK_0_ONLY or number in (signal.SIGTERM, signal.SIGUSR1) else 1
    fault = At(phase, partial(send, number), entry=ENTRIES.get(phase, 2), ranks=(rank,))
    code = DONE if phase == "leaving" else STOPPED
    output = start(config, faults=[fault]).expect(code, code, seconds=SECONDS)
    if phase in SET_UP:
        outcome = "stopped before the first step"
        assert outcome in output
    elif phase == "leaving":
        outcome = "ended as it would have"
    else:
        last = records(run)[-1]["step"]
        assert step_of(checkpoints_of(run)[0]) == last
        assert f"stopped on request after step {last}" in output
        outcome = f"all ranks stopped with a checkpoint, exit code {STOPPED}"
    start(config).expect(DONE, DONE)
    assert_same(run, undisturbed(2, **FIELDS))
    survived(f"signal to one rank while {phase}", f"{outcome}; went on bitwise as if undisturbed")


def send_twice(number: signal.Signals) -> None:
    send(number)
    time.sleep(4)  # two signals within three seconds are one request
    send(number)
    time.sleep(60)


@pytest.mark.faults
def test_second_signal(tmp_path, write_run, undisturbed, survived):
    config = write_run(tmp_path / "run", **FIELDS)
    fault = At("reading", partial(send_twice, signal.SIGTERM), entry=8, ranks=(1,))
    output = start(config, faults=[fault]).expect(FAILED, 128 + signal.SIGTERM, seconds=SECONDS)
    assert "rank 1" in output
    start(config).expect(DONE, DONE)
    assert_same(config.with_suffix(""), undisturbed(2, **FIELDS))
    survived("a second SIGTERM while the first cannot be followed", "ended at once; went on bitwise as if undisturbed")
