"""A damaged checkpoint is named and passed over, and the run goes on from the one before."""

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.checkpoint import checkpoint_path
from pretrain.errors import BAD_INPUT, DONE
from pretrain.files import hash_file
from tests.faults.crew import start
from tests.faults.phases import At, get_killed
from tests.faults.runs import assert_same

FIELDS = {"train__steps": 12, "train__micro_batch": 1, "checkpoint__every": 4, "checkpoint__background": False}
FILES = ("rank-00000.safetensors", "rank-00001.safetensors", "state.json", "manifest.json")


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def with_a_bit_flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    bit = random.Random(file.name).randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def removed(file: Path) -> None:
    file.unlink()


def made_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.fixture(scope="module")
def killed(tmp_path_factory, write_run) -> Path:
    """A run of 12 steps, killed in step 10: it has checkpoints of steps 4 and 8."""
    config = write_run(tmp_path_factory.mktemp("killed") / "run", **FIELDS)
    start(config, faults=[At("forward", get_killed, entry=19)]).expect(-9, -9)
    return config.with_suffix("")


@pytest.fixture
def copy(killed, tmp_path, write_run) -> Path:
    """The configuration of a copy of that run."""
    shutil.copytree(killed, tmp_path / "run")
    return write_run(tmp_path / "run", **FIELDS)


DAMAGES = [
    (damage, name) for damage in (truncated, emptied, with_a_bit_flipped, removed, made_a_folder) for name in FILES
]
SHORT = (with_a_bit_flipped, FILES[1])


@pytest.mark.parametrize(
    ("damage", "name"), [pytest.param(*d, marks=() if d == SHORT else pytest.mark.faults) for d in DAMAGES]
)
def test_damaged_file(copy, undisturbed, survived, damage: Callable[[Path], None], name):
    newest = checkpoint_path(copy.with_suffix(""), 8)
    assert {path.name for path in newest.iterdir()} == set(FILES)
    damage(newest / name)
    output = start(copy).expect(0, 0)
    # What is wrong in the manifest may look as if it were wrong in another file.
    assert f"warning: passing over damaged checkpoint {newest}: {name if name != 'manifest.json' else ''}" in output
    assert_same(copy.with_suffix(""), undisturbed(2, **FIELDS))
    survived(
        f"{name} {damage.__name__.replace('_', ' ')}", "named and passed over, went on bitwise from the one before"
    )


@pytest.mark.faults
def test_last_checkpoint_damaged(copy, undisturbed, survived):
    run = copy.with_suffix("")
    start(copy).expect(DONE, DONE)
    truncated(checkpoint_path(run, 12) / FILES[0])
    output = start(copy).expect(DONE, DONE)
    assert [line for line in output.splitlines() if "warning" in line or "error" in line] == [
        line for line in output.splitlines() if line.startswith("warning: passing over damaged checkpoint")
    ]
    assert_same(run, undisturbed(2, **FIELDS))
    survived("last step's checkpoint damaged", "named, and replaced by a whole one")


@pytest.mark.faults
def test_all_checkpoints_damaged(copy, survived):
    for step in (4, 8):
        removed(checkpoint_path(copy.with_suffix(""), step) / FILES[0])
    output = start(copy).expect(BAD_INPUT, BAD_INPUT)
    assert output.count("warning: passing over damaged checkpoint") == 2
    assert output.count("error: run.dir: of the checkpoints in") == 1
    survived("all checkpoints damaged", "named, and nothing started afresh in their place")


class Trap:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return os.mkdir, (self._path,)


@pytest.mark.faults
def test_pickle_in_a_checkpoint_is_not_run(copy, undisturbed, survived, tmp_path):
    """Its hash holds, as whoever put it there wrote the manifest too."""
    newest = checkpoint_path(copy.with_suffix(""), 8)
    trap = tmp_path / "sprung"
    (newest / FILES[0]).write_bytes(pickle.dumps(Trap(trap)))
    manifest = json.loads((newest / "manifest.json").read_text())
    manifest["files"][FILES[0]] = {"size": (newest / FILES[0]).stat().st_size, "xxh64": hash_file(newest / FILES[0])}
    (newest / "manifest.json").write_text(json.dumps(manifest))
    output = start(copy).expect(0, 0)
    assert f"warning: passing over damaged checkpoint {newest}: {FILES[0]} is not a safetensors file" in output
    assert not trap.exists()
    assert_same(copy.with_suffix(""), undisturbed(2, **FIELDS))
    survived("a pickle in the place of a tensor file, manifest to match", "not run, named and passed over")
