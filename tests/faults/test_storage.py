"""A disk that is full, read-only or gone while a run saves costs no more than the checkpoints of that time."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from pretrain.checkpoint import checkpoints_of, damage
from pretrain.errors import FAILED
from tests.faults.crew import start
from tests.faults.phases import At, get_killed
from tests.faults.runs import assert_same

FIELDS = {"train__steps": 40, "train__micro_batch": 1, "checkpoint__every": 3, "checkpoint__keep": 2}
BEGIN, END = 10, 25
"""Steps between which the disk is out of order."""


def fill(store: Path) -> None:
    with (store / "ballast").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))


def free(store: Path) -> None:
    (store / "ballast").unlink()


def make_read_only(store: Path) -> None:
    # A mount of its own has no files open for writing, which would keep it from becoming read-only.
    mount("--bind", store, store)
    mount("-o", "remount,bind,ro", store)


def hide(store: Path) -> None:
    """As the mount point of a disk that is gone: an empty folder in which nothing can be written."""
    mount("-t", "tmpfs", "-o", "ro", "none", store)


def uncover(store: Path) -> None:
    subprocess.run(["umount", store], check=True)


def delete_checkpoints(store: Path) -> None:
    shutil.rmtree(store / "run" / "checkpoints")


def move_checkpoints_away(store: Path) -> None:
    """The folder of checkpoints is a link to another disk, which is gone."""
    shutil.move(store / "run" / "checkpoints", store / "elsewhere")
    (store / "run" / "checkpoints").symlink_to(store / "gone")


def move_checkpoints_back(store: Path) -> None:
    (store / "elsewhere").rename(store / "gone")


def mount(*arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


def during(store: Path, spoil: Callable[[Path], None], repair: Callable[[Path], None]) -> list[At]:
    """The disk is spoilt before step `BEGIN` and repaired before step `END`."""
    return [
        At("reading", partial(spoil, store), entry=BEGIN, ranks=(0,)),
        At("reading", partial(repair, store), entry=END, ranks=(0,)),
    ]


@pytest.fixture
def store(tmp_path) -> Iterator[Path]:
    """A small disk of its own."""
    path = tmp_path / "store"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", path], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    yield path
    while path.is_mount():
        subprocess.run(["umount", "--lazy", path], check=True)


OUTAGES = [
    ("disk full", fill, free, "No space left on device"),
    ("disk read-only", make_read_only, uncover, "Read-only file system"),
    ("disk gone, an empty read-only folder in its place", hide, uncover, "Read-only file system"),
    ("checkpoints a link to a disk that is gone", move_checkpoints_away, move_checkpoints_back, "File exists"),
]
SHORT = ("disk full", True)


@pytest.mark.parametrize(
    ("name", "spoil", "repair", "reason", "background"),
    [
        pytest.param(*outage, background, marks=() if (outage[0], background) == SHORT else pytest.mark.faults)
        for outage in OUTAGES
        for background in (True, False)
    ],
)
def test_outage(store, tmp_path, write_run, undisturbed, survived, name, spoil, repair, reason, background):
    """Training goes on through it, with a warning for each save that fails, and saves again after it."""
    config = write_run(store / "run", **FIELDS, checkpoint__background=background, checkpoint__max_failures=100)
    output = start(config, faults=during(store, spoil, repair), logs=tmp_path).expect(0, 0)
    assert "was not written: " in output and reason in output and "; trying again, " in output
    assert_same(store / "run", undisturbed(2, **FIELDS))
    how = "in the background" if background else "between steps"
    survived(
        f"{name} for {END - BEGIN} of {FIELDS['train__steps']} steps, saving {how}",
        "warned, went on, saved again after it, bitwise as if undisturbed",
    )


@pytest.mark.faults
def test_killed_during_an_outage(store, tmp_path, write_run, undisturbed, survived):
    """What was saved before it is whole and enough to go on from."""
    config = write_run(store / "run", **FIELDS, checkpoint__max_failures=100)
    faults = [
        At("reading", partial(fill, store), entry=BEGIN, ranks=(0,)),
        At("reading", get_killed, entry=END),
    ]
    start(config, faults=faults, logs=tmp_path).expect(-9, -9)
    assert any(damage(checkpoint) is None for checkpoint in checkpoints_of(store / "run"))
    free(store)
    start(config, logs=tmp_path).expect(0, 0)
    assert_same(store / "run", undisturbed(2, **FIELDS))
    survived("disk full, then kill -9 of both ranks", "older checkpoint whole, went on from it bitwise")


@pytest.mark.faults
def test_outage_that_does_not_end(store, tmp_path, write_run, undisturbed, survived):
    """The run ends after `max_failures`; the command goes on once there is room."""
    config = write_run(store / "run", **FIELDS, checkpoint__max_failures=3, checkpoint__background=False)
    faults = [At("reading", partial(fill, store), entry=BEGIN, ranks=(0,))]
    output = start(config, faults=faults, logs=tmp_path).expect(FAILED, FAILED)
    assert "failure 2 of 3" in output and "error: run.dir: 3 checkpoints in a row were not written" in output
    assert "Traceback" not in output
    assert any(damage(checkpoint) is None for checkpoint in checkpoints_of(store / "run"))
    free(store)
    start(config, logs=tmp_path).expect(0, 0)
    assert_same(store / "run", undisturbed(2, **FIELDS))
    survived("disk full for good", "ended after checkpoint.max_failures; with room again, went on bitwise")


@pytest.mark.faults
def test_checkpoints_deleted(store, tmp_path, write_run, undisturbed, survived):
    config = write_run(store / "run", **FIELDS)
    faults = [At("reading", partial(delete_checkpoints, store), entry=BEGIN, ranks=(0,))]
    start(config, faults=faults, logs=tmp_path).expect(0, 0)
    assert_same(store / "run", undisturbed(2, **FIELDS))
    survived("folder of checkpoints deleted", "made anew, saved again, bitwise as if undisturbed")
