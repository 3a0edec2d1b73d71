"""What takes long is no hang, and a request to stop does not wait for it."""

import itertools
import signal
import time
from functools import partial

import pytest

from pretrain.checkpoint import checkpoints_of, step_of
from pretrain.errors import DONE, STOPPED
from tests.faults.crew import start
from tests.faults.phases import At, hang, replace, send
from tests.faults.runs import assert_same, records

FIELDS = {"train__steps": 12, "train__micro_batch": 1, "checkpoint__every": 3}
SECONDS = 40


class Slow:
    """A fault: every call of a function takes so much longer."""

    def __init__(self, target: str, seconds: float) -> None:
        self.target, self.seconds = target, seconds

    def __call__(self, rank: int) -> None:
        replace(self.target, self._slowed)

    def _slowed(self, function):
        def wait_first(*args, **kwargs):
            time.sleep(self.seconds)
            return function(*args, **kwargs)

        return wait_first


class StalledData:
    """A fault: the thread that reads ahead stands still, and then the process is asked to stop."""

    def __call__(self, rank: int) -> None:
        replace("pretrain.corpus.reader:cut_micro_batches", self._stalling)

    def _stalling(self, function):
        calls = itertools.count(1)

        def stall(*args):
            if next(calls) == 8:
                time.sleep(3)  # until what was read ahead is used up
                send(signal.SIGUSR1)
                hang()
            return function(*args)

        return stall


@pytest.mark.faults
@pytest.mark.parametrize(
    ("what", "function", "seconds", "fields"),
    [
        ("validation", "pretrain.validation:Validator._score", 1.0, {"evaluation__windows": 12}),
        ("save", "pretrain.checkpoint.saver:write_share", 5.0, {"checkpoint__background": False}),
    ],
)
def test_longer_than_a_step(tmp_path, write_run, undisturbed, survived, what, function, seconds, fields):
    fields = FIELDS | {"checkpoint__every": 5, "watchdog__step": 4} | fields
    config = write_run(tmp_path / "run", **fields)
    start(config, faults=[Slow(function, seconds)]).expect(DONE, DONE, seconds=SECONDS)
    assert_same(config.with_suffix(""), undisturbed(2, **fields))
    survived(f"{what} longer than watchdog.step", "went through, as if undisturbed")


@pytest.mark.faults
def test_request_to_stop_while_data_stalls(tmp_path, write_run, undisturbed, survived):
    config = write_run(tmp_path / "run", **FIELDS)
    start(config, faults=[StalledData()]).expect(STOPPED, STOPPED, seconds=SECONDS)
    run = config.with_suffix("")
    assert step_of(checkpoints_of(run)[0]) == records(run)[-1]["step"] == 7
    start(config).expect(DONE, DONE)
    assert_same(run, undisturbed(2, **FIELDS))
    survived("signal while data stalls", "stopped with a checkpoint; went on bitwise as if undisturbed")


@pytest.mark.faults
def test_signal_in_the_last_validation(tmp_path, write_run, undisturbed, survived):
    config = write_run(tmp_path / "run", **FIELDS)
    run = config.with_suffix("")
    start(config, faults=[At("validation", partial(send, signal.SIGTERM), entry=2)]).expect(STOPPED, STOPPED)
    start(config).expect(DONE, DONE)
    assert_same(run, undisturbed(2, **FIELDS))
    assert "already done" in start(config).expect(DONE, DONE)
    survived("signal in the last validation", "stopped, validated when it went on, done once and for all")
