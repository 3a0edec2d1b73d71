"""What a save leaves on the disk, and what it does where the disk refuses."""

import errno
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import xxhash
from safetensors.torch import load_file

from perceiver_ar.models.perceiver_ar import PerceiverAR
from pretrain.checkpoint import CheckpointReader, damage, latest_checkpoint, load_weights, read_state
from pretrain.distributed import RanksError
from pretrain.errors import FAILED
from tests.pretrain.checkpoint.stored_state import CONFIG, refused_writes, state_of


def test_holds_the_weights_and_moments_by_the_models_names(tmp_path, engine, save):
    assert save(12)
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint == tmp_path / "checkpoints" / "step-00000012"
    weights = load_weights(checkpoint)
    copy = PerceiverAR(CONFIG)
    copy.load_state_dict(weights)
    ids = torch.randint(0, 30, (2, 16))
    assert torch.equal(copy(ids, 12).logits, engine.model(ids, 12).logits)
    stored = load_file(checkpoint / "rank-00000.safetensors")
    reader = CheckpointReader(checkpoint)
    for name, weight in weights.items():
        assert torch.equal(stored[f"exp_avg_sq/{name}:0"], weight.flatten() ** 2)
        assert torch.equal(reader.whole("exp_avg_sq", name), weight**2)


def test_state_tells_what_wrote_it(tmp_path, save):
    save(12)
    state = read_state(latest_checkpoint(tmp_path))
    facts = ("step", "adam_step", "world_size", "zero_stage")
    assert [state[fact] for fact in facts] == [12, 3, 1, 1]
    assert re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+", state["code"]["version"])
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    if head.returncode == 0:
        assert head.stdout.startswith(state["code"]["commit"])


def test_manifest_has_size_and_hash_of_every_file(tmp_path, save):
    save(1)
    checkpoint = latest_checkpoint(tmp_path)
    files = json.loads((checkpoint / "manifest.json").read_text())["files"]
    assert {*files, "manifest.json"} == {p.name for p in checkpoint.iterdir()}
    for name, entry in files.items():
        content = (checkpoint / name).read_bytes()
        assert entry == {"size": len(content), "xxh64": xxhash.xxh64(content).hexdigest()}


def test_background_save_holds_the_state_of_its_step(tmp_path, engine, saver):
    one = saver()
    before = {name: weight.clone() for name, weight in engine.tensors["exp_avg"].items()}
    state = state_of(5)
    for step in (5, 6):
        state["step"] = step
        one.begin(state, background=True)
        assert one.pending
        # Training goes on while the thread writes.
        state["config"] = None
        for tensor in engine.tensors["exp_avg"].values():
            tensor += 1
        one.wait()
        assert one.pending and not one.writing
        assert one.finish() and not one.pending
        assert one.saved_step == step
        state = state_of(step)
        reader = CheckpointReader(latest_checkpoint(tmp_path))
        for name, tensor in before.items():
            assert torch.equal(reader.whole("exp_avg", name), tensor + (step - 5))


def test_nothing_is_published_before_it_is_finished(tmp_path, saver):
    one = saver()
    one.begin(state_of(1), background=True)
    one.wait()
    assert latest_checkpoint(tmp_path) is None


def test_refused_write_is_a_warning_and_older_checkpoints_stay(tmp_path, saver, names, capsys):
    one = saver(max_failures=2)
    one.begin(state_of(1), background=False)
    assert one.finish()
    for step, background in ((2, False), (4, True)):
        with refused_writes():
            one.begin(state_of(step), background)
            one.wait()
        assert not one.finish()
        assert (one.failures, one.saved_step) == (1, step - 1)
        assert re.fullmatch(
            rf"warning: checkpoint of step {step} was not written: {tmp_path}/\S+/rank-00000.safetensors: "
            rf"File too large; trying again, the newest whole one is step-0000000{step - 1}; failure 1 of 2\n",
            capsys.readouterr().err,
        )
        assert f"step-0000000{step - 1}" in names(tmp_path)
        assert not [name for name in names(tmp_path) if name.startswith(".tmp")]
        # The next attempt succeeds, and failures are counted anew.
        one.begin(state_of(step + 1), background)
        one.wait()
        assert one.finish()
        assert one.failures == 0


def test_too_many_failures_in_a_row_are_fatal(tmp_path, saver, save, names, capsys):
    save(1)
    one = saver(saved_step=1, max_failures=3)
    with refused_writes():
        for step in (2, 3, 4):
            one.begin(state_of(step), background=True)
            one.wait()
            if step < 4:
                assert not one.finish()
    with pytest.raises(RanksError, match=r"run\.dir: 3 .*File too large; the newest whole one is step-0+1$") as fatal:
        one.finish()
    assert fatal.value.code == FAILED
    assert capsys.readouterr().err.count("warning") == 2
    assert names(tmp_path) == ["step-00000001"]
    assert damage(tmp_path / "checkpoints" / "step-00000001") is None


def test_folder_that_vanishes_between_saves_or_while_writing_is_made_again(tmp_path, saver, names, capsys):
    run = tmp_path / "run"
    one = saver(run)
    one.begin(state_of(1), background=False)
    shutil.rmtree(run)
    assert not one.finish()
    assert "step 1 was not written" in capsys.readouterr().err
    one.begin(state_of(2), background=False)
    assert one.finish()
    shutil.rmtree(run)
    one.begin(state_of(3), background=True)
    one.wait()
    assert one.finish()
    assert names(run) == ["step-00000003"]


def test_folder_that_cannot_be_made_is_a_warning(tmp_path, saver, capsys):
    (tmp_path / "checkpoints").write_text("in the way")
    one = saver()
    one.begin(state_of(1), background=False)
    assert not one.finish()
    told = r"step 1 was not written: .*checkpoints.*; .*no whole one yet; failure 1 of 5"
    assert re.search(told, capsys.readouterr().err)


def test_leftovers_of_interrupted_saves_go_with_the_next(tmp_path, save, names):
    folder = tmp_path / "checkpoints"
    for name in (".tmp-step-00000002", ".tmp-step-00000003", ".tmp-deleted-step-00000001"):
        (folder / name).mkdir(parents=True)
        (folder / name / "rank-00001.safetensors").write_bytes(b"half")
    save(3)
    assert names(tmp_path) == ["step-00000003"]
    assert damage(folder / "step-00000003") is None


def test_saving_a_step_again_replaces_it(tmp_path, engine, save, names):
    save(3)
    newest = tmp_path / "checkpoints" / "step-00000003"
    (newest / "state.json").unlink()
    engine.adam_step = 7
    save(3)
    assert read_state(newest)["adam_step"] == 7
    assert names(tmp_path) == ["step-00000003"]


def test_remains_of_a_replaced_checkpoint_are_no_failure(tmp_path, engine, save, names, monkeypatch, capsys):
    save(3)
    remove = os.rmdir

    def busy(path, **arguments):
        # As NFS does while a process has one of the deleted files open.
        if ".tmp-deleted" in str(path):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
        remove(path, **arguments)

    monkeypatch.setattr(os, "rmdir", busy)
    engine.adam_step = 7
    assert save(3)
    assert capsys.readouterr().err == ""
    assert read_state(latest_checkpoint(tmp_path))["adam_step"] == 7
    monkeypatch.undo()
    save(4)
    assert names(tmp_path) == ["step-00000003", "step-00000004"]


def test_write_that_hangs_in_the_background_ends_the_process(tmp_path, start_ranks, finish_ranks):
    worker = Path(__file__).with_name("hanging_worker.py")
    output = finish_ranks(start_ranks([worker, tmp_path], 1), code=FAILED, timeout=120)
    assert "error: nothing for 1 s (watchdog.save); rank 0 in saving step 1: writing in the background" in output
    assert "in dead_disk" in output
