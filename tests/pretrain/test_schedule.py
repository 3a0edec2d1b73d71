import math

import pytest

from pretrain.config import ScheduleSection
from pretrain.schedule import learning_rate

PEAK, STEPS = 0.5, 100


def rates(**schedule):
    section = ScheduleSection(**schedule)
    return [learning_rate(step, PEAK, STEPS, section) for step in range(1, STEPS + 1)]


@pytest.mark.parametrize("kind", ["constant", "cosine", "linear", "wsd"])
def test_warms_up_linearly_to_the_peak(kind):
    found = rates(kind=kind, warmup_steps=10, decay_steps=20 if kind == "wsd" else 0)
    assert found[:10] == pytest.approx([PEAK * k / 10 for k in range(1, 11)])
    assert max(found) == PEAK


@pytest.mark.parametrize("warmup", [0, 10])
@pytest.mark.parametrize(
    ("kind", "height"),
    [
        ("cosine", lambda done: (1 + math.cos(math.pi * done)) / 2),
        ("linear", lambda done: 1 - done),
    ],
)
def test_decays_over_the_rest_of_the_run(kind, height, warmup):
    found = rates(kind=kind, warmup_steps=warmup, final_lr_fraction=0.2)
    for step in (warmup + 1, 50, 99):
        done = (step - warmup) / (STEPS - warmup)
        assert found[step - 1] == pytest.approx(PEAK * (0.2 + 0.8 * height(done)))
    assert found[-1] == pytest.approx(0.2 * PEAK, rel=1e-12)


def test_wsd_is_stable_and_decays_by_one_minus_sqrt():
    found = rates(kind="wsd", warmup_steps=10, decay_steps=25, final_lr_fraction=0.0)
    assert set(found[9:75]) == {PEAK}
    assert found[75:] == pytest.approx([PEAK * (1 - math.sqrt(k / 25)) for k in range(1, 26)])
    assert found[-1] == 0


def test_constant_stays():
    assert set(rates(kind="constant", final_lr_fraction=0.0)) == {PEAK}


def test_warm_up_may_be_the_whole_run():
    assert rates(kind="cosine", warmup_steps=STEPS)[-1] == PEAK
