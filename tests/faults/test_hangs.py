"""What stands still ends the run in bounded time, with a word on who and where; the command goes on."""

import ctypes
import os
import signal
from functools import partial

import pytest

from pretrain.distributed import watchdog
from pretrain.errors import FAILED
from tests.faults.crew import start
from tests.faults.phases import At, hang, send
from tests.faults.runs import assert_same

FIELDS = {"train__steps": 12, "train__micro_batch": 1, "checkpoint__every": 3}
LIMITS = {"watchdog__setup": 10, "watchdog__step": 3, "watchdog__save": 3, "watchdog__dead_rank": 3}
SECONDS = 40


def hang_with_the_interpreter_locked() -> None:
    ctypes.PyDLL(None).sleep(3600)


def shorten_margin(rank: int) -> None:
    """The last resort against a locked interpreter, which needs none of it, comes that long after all others."""
    watchdog._MARGIN_SECONDS = 10.0


HANGS = [
    ("building the model", hang, 1, "watchdog.setup"),
    ("reading", hang, 7, "watchdog.step"),
    ("agreeing", hang, 7, "watchdog.step"),
    ("backward", hang, 7, "watchdog.step"),
    ("validation", hang, 1, "watchdog.step"),
    ("writing", hang, 2, "watchdog.save"),
    ("forward", hang_with_the_interpreter_locked, 7, "watchdog.dead_rank"),
]
"""Where rank 1 hangs, how, at which entry, and which limit ends that."""


@pytest.mark.parametrize(
    ("phase", "action", "entry", "limit"),
    [pytest.param(*case, marks=() if case[0] == "reading" else pytest.mark.faults) for case in HANGS],
)
def test_hang(tmp_path, write_run, undisturbed, survived, phase, action, entry, limit):
    config = write_run(tmp_path / "run", **FIELDS, **LIMITS)
    faults = [At(phase, action, entry, ranks=(1,)), shorten_margin]
    output = start(config, faults=faults).expect(FAILED, FAILED, seconds=SECONDS)
    assert limit in output and "rank 1" in output
    assert f"in {action.__name__}" in output, "the stack of what hangs"
    start(write_run(tmp_path / "run", **FIELDS)).expect(0, 0)
    assert_same(config.with_suffix(""), undisturbed(2, **FIELDS))
    how = "with the interpreter locked " if action is hang_with_the_interpreter_locked else ""
    survived(
        f"rank 1 hangs {how}while {phase}",
        f"ended by {limit}, stacks printed; went on bitwise as if undisturbed",
    )


@pytest.mark.faults
def test_stopped_rank(tmp_path, write_run, undisturbed, survived):
    """Its kernel answers for it, as for a machine that thrashes."""
    config = write_run(tmp_path / "run", **FIELDS, **LIMITS)
    crew = start(config, faults=[At("forward", partial(send, signal.SIGSTOP), entry=7, ranks=(1,))])
    crew.processes[0].join(SECONDS)
    assert crew.processes[0].exitcode == FAILED, crew.output()
    os.kill(crew.processes[1].pid, signal.SIGCONT)
    assert crew.wait(SECONDS)[1] == FAILED
    assert "rank 1" in crew.output() and "watchdog.dead_rank" in crew.output()
    start(write_run(tmp_path / "run", **FIELDS)).expect(0, 0)
    assert_same(config.with_suffix(""), undisturbed(2, **FIELDS))
    survived("rank 1 is stopped (SIGSTOP)", "found silent and named; went on bitwise as if undisturbed")


@pytest.mark.faults
@pytest.mark.parametrize("absent", [0, 1])
def test_absent_rank(tmp_path, write_run, survived, absent):
    config = write_run(tmp_path / "run", **FIELDS, watchdog__setup=4)
    crew = start(config, faults=[At("joining", hang, ranks=(absent,))])
    present = crew.processes[1 - absent]
    present.join(SECONDS)
    assert present.exitcode == FAILED, crew.output()
    assert f"rank {absent}" in crew.output() and "watchdog.setup" in crew.output()
    crew.wait(0)
    survived(f"rank {absent} does not come", "the other named it after watchdog.setup and ended")
