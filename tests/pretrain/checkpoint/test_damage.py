"""A checkpoint that is not what it was is named and passed over; none is ever executed."""

import json
import os
import pickle
import zipfile

import pytest
import torch
import xxhash

from pretrain.checkpoint import checkpoint_path, checkpoints_of, damage, latest_checkpoint, newest_whole, read_state
from pretrain.distributed import RanksError
from pretrain.errors import BAD_INPUT, FAILED, InputError
from tests.pretrain.checkpoint.stored_state import ALONE

FILES = ("manifest.json", "rank-00000.safetensors", "state.json")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def flip_first_bit(path):
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


def flip_a_bit_in_the_middle(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(path):
    path.unlink()


@pytest.mark.parametrize("spoil", [truncate, empty, flip_first_bit, flip_a_bit_in_the_middle, remove])
@pytest.mark.parametrize("name", FILES)
def test_damaged_checkpoint_is_named_and_passed_over(tmp_path, save, capsys, name, spoil):
    save(1)
    save(2)
    older, newest = (checkpoint_path(tmp_path, step) for step in (1, 2))
    assert latest_checkpoint(tmp_path) == newest
    spoil(newest / name)
    for find in (latest_checkpoint, lambda run: newest_whole(run, ALONE)):
        assert find(tmp_path) == older
        [warning] = capsys.readouterr().err.splitlines()
        assert warning.startswith(f"warning: passing over damaged checkpoint {newest}: ")
        # A changed manifest may accuse any file.
        assert name in warning or name == "manifest.json"
    spoil(older / name)
    assert latest_checkpoint(tmp_path) is None
    assert len(capsys.readouterr().err.splitlines()) == 2
    with pytest.raises(RanksError, match="none is whole; restore one, or remove them all to train anew") as refused:
        newest_whole(tmp_path, ALONE)
    assert refused.value.code == BAD_INPUT


@pytest.mark.parametrize("name", FILES)
def test_checkpoints_that_cannot_be_read_are_not_for_the_user_to_replace(tmp_path, save, name):
    save(1)
    save(2)
    truncate(checkpoint_path(tmp_path, 1) / name)
    file = checkpoint_path(tmp_path, 2) / name
    file.rename(file.with_suffix(".away"))
    file.symlink_to(file)  # the system refuses to follow it round and round
    with pytest.raises(RanksError, match=r"cannot be read now") as refused:
        newest_whole(tmp_path, ALONE)
    assert refused.value.code == FAILED
    file.unlink()
    file.with_suffix(".away").rename(file)
    assert newest_whole(tmp_path, ALONE) == checkpoint_path(tmp_path, 2)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def as_pickle(path):
    path.write_bytes(pickle.dumps(Trap()))


def as_torch_file(path):
    torch.save(Trap(), path)


def as_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(Trap()))


@pytest.mark.parametrize("disguise", [as_pickle, as_torch_file, as_zip])
def test_pickle_in_the_place_of_tensors_is_refused_and_not_executed(tmp_path, save, capsys, monkeypatch, disguise):
    monkeypatch.chdir(tmp_path)
    save(1)
    newest = checkpoint_path(tmp_path, 1)
    path = newest / "rank-00000.safetensors"
    disguise(path)
    manifest = json.loads((newest / "manifest.json").read_text())
    content = path.read_bytes()
    manifest["files"][path.name] = {"size": len(content), "xxh64": xxhash.xxh64(content).hexdigest()}
    (newest / "manifest.json").write_text(json.dumps(manifest))
    assert damage(newest) == "rank-00000.safetensors is not a safetensors file"
    assert latest_checkpoint(tmp_path) is None
    assert not (tmp_path / "executed").exists()


def test_other_format_is_refused_in_one_line(tmp_path, save):
    save(1)
    path = checkpoint_path(tmp_path, 1) / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(InputError, match="step-00000001: has format 2, this program reads 4: train anew"):
        read_state(checkpoint_path(tmp_path, 1))


def test_only_folders_named_by_their_step_are_checkpoints(tmp_path):
    for name in ("step-00000002", "step-123456789", "step-00000010", "step-best", ".tmp-step-00000011", "notes"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [path.name for path in checkpoints_of(tmp_path)] == ["step-123456789", "step-00000010", "step-00000002"]
    assert checkpoints_of(tmp_path / "nowhere") == []
