import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.config import StabilitySection
from pretrain.stability import StabilityGuard, spike_limit

WINDOW = 16
SECTION = StabilitySection(window=WINDOW, sigmas=8, max_skipped_steps=3, max_rise=1.5)
RUN = Path("runs/a")

values = st.floats(0.01, 100)


def settled(section: StabilitySection = SECTION, loss: float = 3.0, grad_norm: float = 0.4) -> StabilityGuard:
    """A guard with a full window of steps around these values."""
    guard = StabilityGuard(section, None)
    for i in range(section.window):
        wave = 1 + 0.01 * math.sin(i)
        guard.took(loss * wave, grad_norm * wave)
    return guard


@given(st.lists(values, min_size=8, max_size=200), st.floats(1, 20), st.floats(0, 1))
def test_limit_is_the_hampel_identifiers(history: list[float], sigmas: float, floor: float) -> None:
    middle = np.median(history)
    deviation = 1.4826 * np.median(np.abs(np.array(history) - middle))
    assert spike_limit(history, sigmas, floor) == pytest.approx(middle + sigmas * max(deviation, floor * middle))


@pytest.mark.parametrize(
    ("loss", "grad_norm", "problem"),
    [
        (3.0, 0.4, None),
        (4.1, 1.9, None),  # just below 3 x (1 + 8 x 0.05) and 0.4 x (1 + 8 x 0.5)
        (0.1, 0.001, None),
        (4.3, 0.4, "loss 4.3 is a spike (limit 4.2)"),
        (3.0, 2.1, "gradient norm 2.1 is a spike (limit 2)"),
        (math.nan, 0.4, "loss not finite"),
        (math.inf, 0.4, "loss not finite"),
        (3.0, math.nan, "gradient norm not finite"),
        (3.0, math.inf, "gradient norm not finite"),
    ],
)
def test_judges_by_the_last_steps(loss: float, grad_norm: float, problem: str | None) -> None:
    guard = StabilityGuard(SECTION, None)
    for _ in range(SECTION.window):
        guard.took(3.0, 0.4)
    assert guard.judge(loss, grad_norm) == problem


def test_noise_widens_the_limit() -> None:
    rng = np.random.default_rng(0)
    guard = StabilityGuard(SECTION.model_copy(update={"window": 128}), None)
    for loss in rng.normal(3, 0.5, 128):
        guard.took(float(loss), 1.0)
    assert guard.judge(3 + 7 * 0.5, 1.0) is None  # would be beyond the floor's 4.2
    assert guard.judge(3 + 10 * 0.5, 1.0) is not None


def test_looks_for_spikes_only_with_a_full_window_and_only_if_asked() -> None:
    guard = StabilityGuard(SECTION, None)
    for _ in range(WINDOW - 1):
        guard.took(3.0, 0.4)
        assert guard.judge(100.0, 100.0) is None
    guard.took(3.0, 0.4)
    assert guard.judge(100.0, 100.0) is not None
    incurious = settled(SECTION.model_copy(update={"sigmas": None}))
    assert incurious.judge(100.0, 100.0) is None
    assert incurious.judge(math.nan, 100.0) is not None


def test_new_data_has_no_history() -> None:
    guard = settled()
    guard.new_data()
    assert guard.judge(100.0, 100.0) is None
    for _ in range(WINDOW):
        guard.took(100.0, 100.0)
    assert guard.verdict(500, RUN) is None


def test_skipped_steps_do_not_move_the_limit_and_end_the_run_in_a_row() -> None:
    guard = settled()
    for step in (101, 102):
        guard.skipped(guard.judge(9.0, 0.4) or "")
        assert guard.verdict(step, RUN) is None
    guard.took(3.0, 0.4)
    for step in (104, 105, 106):
        assert guard.verdict(step - 1, RUN) is None
        problem = guard.judge(9.0, 0.4)
        assert problem is not None
        guard.skipped(problem)
    verdict = guard.verdict(106, RUN)
    assert verdict is not None
    for part in (
        "no update in steps 104 to 106",
        "stability.max_skipped_steps: 3",
        "loss 9 is a spike (limit 4.2",
        "runs/a/metrics.jsonl",
        "pretrain/replay.py --run runs/a --step 104",
        "optimizer.lr",
    ):
        assert part in verdict
    assert "\n" not in verdict


def test_loss_that_stays_high_ends_the_run() -> None:
    patient = settled(SECTION.model_copy(update={"max_rise": None}))
    guard = settled()
    verdicts = []
    for _ in range(WINDOW):
        for each in (guard, patient):
            each.took(4.6, 0.4)  # below the limit of spikes of a window that has begun to rise
        verdicts.append(guard.verdict(200, RUN))
        assert patient.verdict(200, RUN) is None
    # The median is half way between the two levels after half a window, and 1.5 times the lowest beyond it.
    assert [verdict is not None for verdict in verdicts] == [i > WINDOW // 2 for i in range(1, WINDOW + 1)]
    assert "median loss of the last 16 applied steps is 4.6, it has been 3" in str(verdicts[-1])
    assert "stability.max_rise: 1.5" in str(verdicts[-1])


@settings(deadline=None)
@given(st.lists(st.tuples(values, values | st.just(math.nan), st.integers(0, 30)), min_size=20, max_size=60), st.data())
def test_goes_on_from_its_state_as_if_it_had_not_stopped(steps: list[tuple[float, float, int]], data: st.DataObject):
    section = StabilitySection(window=8, sigmas=1.0, max_skipped_steps=5, max_rise=2.0)
    saved_at = data.draw(st.integers(0, len(steps) - 1))
    guard = StabilityGuard(section, None)
    resumed = None
    for step, (loss, grad_norm, event) in enumerate(steps):
        if step == saved_at:
            resumed = StabilityGuard(section, json.loads(json.dumps(guard.state())))
        seen = []
        for each in filter(None, (guard, resumed)):
            if event == 0:
                each.new_data()
            problem = each.judge(loss, grad_norm)
            if problem is None:
                each.took(loss, grad_norm)
            else:
                each.skipped(problem)
            seen.append((problem, each.verdict(step, RUN), each.state()))
        assert seen[0] == seen[-1]
    assert resumed is not None
