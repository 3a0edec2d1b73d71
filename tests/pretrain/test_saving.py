"""When checkpoints are taken."""

import itertools
import json

from pretrain.checkpoint import checkpoints_of, damage, read_state, step_of

TRAIN = ("pretrain/train.py", "--config")


def test_checkpoints_by_the_clock_on_all_ranks_alike(tmp_path, write_run, start_ranks, finish_ranks):
    config = write_run(
        tmp_path / "run",
        train__steps=150,
        train__micro_batch=1,
        evaluation__every=0,
        checkpoint__every=0,
        checkpoint__every_minutes=0.3 / 60,
        checkpoint__keep=100,
    )
    finish_ranks(start_ranks([*TRAIN, config], 2))
    checkpoints = checkpoints_of(tmp_path / "run")
    assert [damage(checkpoint) for checkpoint in checkpoints] == [None] * len(checkpoints)
    assert step_of(checkpoints[0]) == 150
    taken = sorted(read_state(checkpoint)["seconds"] for checkpoint in checkpoints)
    apart = [after - before for before, after in itertools.pairwise(taken[:-1])]
    assert len(apart) >= 2 and min(apart) > 0.2  # the clock is read before a state is put together
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert taken[0] < lines[-1]["seconds"] / 2
