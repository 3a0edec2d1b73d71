"""kill -9 at any moment loses nothing but time."""

import random
import signal
import time

import pytest

from pretrain.errors import FAILED
from tests.faults.crew import start
from tests.faults.phases import SAVING, Trace
from tests.faults.runs import assert_same

FIELDS = {
    "train__steps": 80,
    "train__micro_batch": 1,
    "model__num_channels": 128,
    "checkpoint__every": 2,
    "checkpoint__keep": 2,
    "checkpoint__keep_every": 20,
    "watchdog__setup": 20,
}
KILLS, IN_SAVES, CAMPAIGNS = 10, 3, 5
"""Kills of a run, those at least that must hit a victim inside a save, runs."""
SAVING_OF_RANK = [sorted(SAVING), sorted(SAVING - {"publishing", "pruning"})]
SETUP_SECONDS, STEP_SECONDS, SAVE_SECONDS = 1.5, 0.03, 0.005


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("seed", "kills", "in_saves"),
    [(11, 3, 1), *(pytest.param(s, KILLS, IN_SAVES, marks=pytest.mark.faults) for s in range(1, CAMPAIGNS + 1))],
)
def test_goes_on_bitwise_after_kills(tmp_path, write_run, undisturbed, survived, seed, kills, in_saves):
    expected = undisturbed(2, **FIELDS)
    config = write_run(tmp_path / "run", **FIELDS)
    rng = random.Random(seed)
    inside = kill = 0
    while kill < kills or inside < in_saves:
        trace = Trace(tmp_path)
        victims = rng.choice([(0,), (1,), (0, 1)])
        crew = start(config, faults=[trace])
        await_moment(rng, trace, victims[0], at_save=kill % 4 > 0)
        crew.kill(victims)
        codes = crew.wait(60)
        assert codes == [-signal.SIGKILL if rank in victims else FAILED for rank in range(2)], crew.output()
        places = set().union(*map(trace.now, victims))
        kill, inside = kill + 1, inside + bool(places & SAVING)
        survived(f"kill -9, {described(places)}", "the others ended; went on bitwise as if undisturbed")
    start(config).expect(0, 0)
    assert_same(config.with_suffix(""), expected)


def described(places: set[str]) -> str:
    if saving := sorted(places & SAVING):
        return f"inside a save: {', '.join(saving)}"
    return f"while {', '.join(sorted(places))}" if places else "between phases"


def await_moment(rng: random.Random, trace: Trace, rank: int, *, at_save: bool) -> None:
    """Wait for a random moment of an attempt: in its set-up, in a step, or around a save."""
    if at_save:
        # Most of a save is over in milliseconds: one part of it is chosen, and its beginning awaited.
        await_entry(trace, rank, rng.choice(SAVING_OF_RANK[rank]), rng.randint(1, 2))
        time.sleep(rng.uniform(0, SAVE_SECONDS))
    elif rng.random() < 0.3:
        time.sleep(rng.uniform(0, SETUP_SECONDS))
    else:
        await_entry(trace, rank, "reading", rng.randint(1, 5))
        time.sleep(rng.uniform(0, STEP_SECONDS))


def await_entry(trace: Trace, rank: int, phase: str, times: int) -> None:
    deadline = time.monotonic() + 60
    while trace.entries(rank, phase) < times:
        assert time.monotonic() < deadline, f"rank {rank} has not come to {phase}"
        time.sleep(0.0002)
