"""Which checkpoints stay: the newest, every n-th, the best, and never no whole one."""

import math

import pytest

from pretrain.checkpoint.retention import outdated
from pretrain.config import CheckpointSection
from tests.pretrain.checkpoint.stored_state import state_of

NONE = dict.fromkeys(range(10, 70, 10))


@pytest.mark.parametrize(
    ("losses", "section", "damaged", "gone"),
    [
        (NONE, {"keep": 2}, set(), [10, 20, 30, 40]),
        (NONE, {"keep": 9}, set(), []),
        (NONE, {"keep": 1, "keep_every": 20}, set(), [10, 30, 50]),
        (NONE | {20: 3.0, 30: 2.5, 50: 2.7}, {"keep": 1}, set(), [10, 20, 40, 50]),
        (NONE | {20: 3.0, 30: 2.5, 50: 2.7}, {"keep": 1, "keep_best": False}, set(), [10, 20, 30, 40, 50]),
        (NONE | {20: 2.5, 30: 2.5}, {"keep": 1}, set(), [10, 20, 40, 50]),
        (NONE | {20: math.nan, 30: math.inf}, {"keep": 1}, set(), [10, 20, 30, 40, 50]),
        # Damaged ones neither count nor are they best; those newer than the newest whole one stay until it passes them.
        (NONE | {20: 1.0}, {"keep": 2}, {20, 40, 60}, [10, 20, 40]),
        (NONE, {"keep": 1, "keep_every": 10}, {30}, [30]),
    ],
)
def test_what_is_to_go(losses, section, damaged, gone):
    assert outdated(losses, CheckpointSection(**section), damaged) == gone


def test_saving_keeps_the_newest_every_nth_and_the_best(tmp_path, save, names):
    losses = {2: 3.0, 4: 1.0, 6: 2.0, 8: 4.0}
    for step in range(1, 9):
        save(step, keep=2, keep_every=5, loss=losses.get(step), background=step % 2 == 0)
    assert names(tmp_path) == [f"step-0000000{step}" for step in (4, 5, 7, 8)]


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
