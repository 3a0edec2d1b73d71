"""Killed at any request to the disk, a save leaves a whole checkpoint, and the next save clears up."""

import multiprocessing
import os
import signal

import pytest

from pretrain.checkpoint import damage, latest_checkpoint, read_state, step_of

FORK = multiprocessing.get_context("fork")
REQUESTS = ("mkdir", "write", "fsync", "rename", "unlink", "rmdir")


def killed_at(call, save):
    """Whether `save` was killed at its `call`-th request to the disk; False if it finished."""

    def body():
        calls = 0

        def counted(function):
            def call_or_die(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)

            return call_or_die

        for name in REQUESTS:
            setattr(os, name, counted(getattr(os, name)))
        save()
        os._exit(0)

    process = FORK.Process(target=body)
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.mark.parametrize("background", [False, True])
def test_killed_at_any_point_of_a_save_a_whole_checkpoint_is_there(tmp_path, save, names, background):
    points, found = 0, []
    while True:
        run = tmp_path / str(points)
        save(1, run=run)
        if not killed_at(points + 1, lambda run=run: save(2, run=run, keep=1, background=background)):
            break
        points += 1
        newest = latest_checkpoint(run)
        assert newest is not None and damage(newest) is None
        found.append(step_of(newest))
        # The next attempt goes on as if nothing had happened, and clears up.
        save(3, run=run, keep=1)
        assert names(run) == ["step-00000003"]
    assert found == sorted(found)
    # Made, three files written and synced, folder synced, renamed; then parents synced and the older one deleted.
    assert found.count(1) >= 10 and found.count(2) >= 6


def test_killed_at_any_point_of_replacing_a_checkpoint_its_step_is_there(tmp_path, engine, save, names):
    points, found = 0, []
    while True:
        run = tmp_path / str(points)
        engine.adam_step = 3
        save(1, run=run)
        engine.adam_step = 7
        if not killed_at(points + 1, lambda run=run: save(1, run=run)):
            break
        points += 1
        newest = latest_checkpoint(run)
        assert newest is not None and damage(newest) is None
        found.append(read_state(newest)["adam_step"])
        save(1, run=run)
        save(2, run=run, keep=1)
        save(3, run=run, keep=1)
        assert names(run) == ["step-00000003"]
    assert found == sorted(found)
    assert found.count(3) >= 10 and found.count(7) >= 6
