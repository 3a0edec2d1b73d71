"""Which checkpoints stay: the newest, every n-th, the best, and never no whole one."""

import math

import pytest

from pretrain.checkpoint.retention import Validation, outdated
from pretrain.config import CheckpointSection
from tests.pretrain.checkpoint.stored_state import state_of

NONE = dict.fromkeys(range(10, 70, 10))


def at(losses):
    """Validations of the steps themselves."""
    return NONE | {step: Validation(step, loss) for step, loss in losses.items()}


LATE = {10: Validation(0, 5.0), 20: Validation(15, 2.0), 30: Validation(15, 2.0), 40: Validation(35, 3.0)}


@pytest.mark.parametrize(
    ("validations", "section", "damaged", "gone"),
    [
        (NONE, {"keep": 2}, set(), [10, 20, 30, 40]),
        (NONE, {"keep": 9}, set(), []),
        (NONE, {"keep": 1, "keep_every": 20}, set(), [10, 30, 50]),
        # The multiples 15, 30, 45, 60: the first one at or after each, none before the first.
        (NONE, {"keep": 1, "keep_every": 15}, set(), [10, 40]),
        (NONE, {"keep": 1, "keep_every": 20}, {40}, [10, 30, 40]),
        (NONE, {"keep": 1, "keep_every": 4}, set(), []),
        (at({20: 3.0, 30: 2.5, 50: 2.7}), {"keep": 1}, set(), [10, 20, 40, 50]),
        (at({20: 3.0, 30: 2.5, 50: 2.7}), {"keep": 1, "keep_best": False}, set(), [10, 20, 30, 40, 50]),
        (at({20: 2.5, 30: 2.5}), {"keep": 1}, set(), [10, 20, 40, 50]),
        (at({20: math.nan, 30: math.inf}), {"keep": 1}, set(), [10, 20, 30, 40, 50]),
        # A loss belongs to the first one after its validation.
        (NONE | LATE, {"keep": 1}, set(), [10, 30, 40, 50]),
        (NONE | LATE, {"keep": 1}, {20}, [10, 20, 40, 50]),
        # Damaged ones neither count nor are they best; those newer than the newest whole one stay until it passes them.
        (at({20: 1.0}), {"keep": 2}, {20, 40, 60}, [10, 20, 40]),
        (NONE, {"keep": 1, "keep_every": 10}, {30}, [30]),
        (NONE, {"keep": 1}, {*NONE}, []),
    ],
)
def test_what_is_to_go(validations, section, damaged, gone):
    assert outdated(validations, CheckpointSection(**section), damaged) == gone


def test_saving_keeps_the_newest_every_nth_and_the_best(tmp_path, save, names):
    # A save may be late: 5 was not written, and the validation after step 3 was the best.
    validated = {2: (2, 3.0), 3: (2, 3.0), 4: (3, 1.0), 7: (7, 2.0), 8: (8, 4.0)}
    for step in (1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12):
        last, loss = validated.get(step, (None, None))
        save(step, keep=2, keep_every=5, loss=loss, validated=last, background=step % 2 == 0)
    assert names(tmp_path) == [f"step-000000{step:02}" for step in (4, 6, 10, 11, 12)]


def test_old_checkpoints_go_before_the_first_save(tmp_path, saver, save, names):
    for step in (10, 20, 30, 40, 50):
        save(step, keep=9)
    # The disk is full, or `keep` has been lowered; 50 was found damaged.
    saver(saved_step=40, keep=2).wait()
    assert names(tmp_path) == [f"step-000000{step}" for step in (30, 40, 50)]


def test_nothing_goes_where_the_run_begins_anew(tmp_path, saver, save, names):
    save(10)
    saver(saved_step=0, keep=1).wait()
    assert names(tmp_path) == ["step-00000010"]


@pytest.mark.parametrize("content", ["[]", '{"format": 4, "step": 10, "validation": 7}', "{}", "no JSON"])
def test_a_state_that_cannot_be_parsed_does_not_end_pruning(tmp_path, save, names, content):
    save(10, keep=2)
    (tmp_path / "checkpoints" / "step-00000010" / "state.json").write_text(content)
    for step in (20, 30):
        save(step, keep=2)
    assert names(tmp_path) == ["step-00000020", "step-00000030"]


def test_damaged_checkpoints_do_not_displace_whole_ones(tmp_path, save, names):
    for step in (10, 20, 30, 40):
        save(step, keep=4)
    # 30 and 40 were found damaged: the run goes on from 20 and saves at other steps than before.
    save(25, saved_step=20, keep=2)
    assert names(tmp_path) == [f"step-000000{step}" for step in (20, 25, 30, 40)]


def test_damaged_checkpoints_go_when_the_run_has_passed_them(tmp_path, saver, names):
    (tmp_path / "checkpoints" / "step-00000030").mkdir(parents=True)
    one = saver(keep=3)
    for step in (20, 40):
        one.begin(state_of(step), background=False)
        assert one.finish()
    assert names(tmp_path) == ["step-00000020", "step-00000040"]
