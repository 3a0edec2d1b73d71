"""A checkpoint is there whole or not at all, whatever happens while it is written or lies on disk."""

import json
import multiprocessing
import os
import resource
import signal
from dataclasses import asdict, dataclass, field

import pytest
import torch
import xxhash
from safetensors.torch import load_file

from perceiver_ar.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from pretrain.checkpoint import damage, latest_checkpoint, load_weights, read_state, save_checkpoint
from pretrain.distributed import Ranks
from pretrain.errors import InputError

CONFIG = PerceiverARConfig(vocab_size=30, max_seq_len=16, max_latents=4, num_channels=8, num_heads=2, num_layers=1)
FORK = multiprocessing.get_context("fork")


@dataclass
class StoredState:
    """What a checkpoint reads from an engine, of a model that is not being trained."""

    model: PerceiverAR
    adam_step: int = 3
    ranks: Ranks = field(default_factory=lambda: Ranks(0, 1, torch.device("cpu"), None))

    @property
    def shapes(self):
        return {name: tuple(p.shape) for name, p in self.model.named_parameters()}

    def gather(self, name, kind):
        weight = self.model.get_parameter(name).detach()
        return {"weight": weight, "exp_avg": weight * 2, "exp_avg_sq": weight**2}[kind]


@pytest.fixture
def engine():
    torch.manual_seed(0)
    return StoredState(PerceiverAR(CONFIG))


def save(run, engine, step, keep=5):
    save_checkpoint(run, engine, {"step": step, "config": {"model": asdict(CONFIG)}}, keep)


def steps(run):
    return sorted(p.name for p in (run / "checkpoints").iterdir())


def test_holds_the_weights_and_moments_by_the_models_names(tmp_path, engine):
    save(tmp_path, engine, 12)
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint == tmp_path / "checkpoints" / "step-00000012"
    config, weights = load_weights(checkpoint)
    assert config == CONFIG
    copy = PerceiverAR(config)
    copy.load_state_dict(weights)
    ids = torch.randint(0, 30, (2, 16))
    assert torch.equal(copy(ids, 12).logits, engine.model(ids, 12).logits)
    moments = load_file(checkpoint / "optimizer-exp_avg_sq.safetensors")
    for name, weight in weights.items():
        assert torch.equal(moments[name], weight**2)
    state = read_state(checkpoint)
    assert (state["step"], state["adam_step"]) == (12, 3)


def test_manifest_has_size_and_hash_of_every_file(tmp_path, engine):
    save(tmp_path, engine, 1)
    checkpoint = latest_checkpoint(tmp_path)
    files = json.loads((checkpoint / "manifest.json").read_text())["files"]
    assert {*files, "manifest.json"} == {p.name for p in checkpoint.iterdir()}
    for name, entry in files.items():
        content = (checkpoint / name).read_bytes()
        assert entry == {"size": len(content), "xxh64": xxhash.xxh64(content).hexdigest()}


def test_keeps_the_newest(tmp_path, engine):
    for step in (1, 2, 10, 11):
        save(tmp_path, engine, step, keep=2)
    assert steps(tmp_path) == ["step-00000010", "step-00000011"]


def truncate(checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    return "model.safetensors"


def flip_a_bit(checkpoint):
    path = checkpoint / "optimizer-exp_avg.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return "optimizer-exp_avg.safetensors"


def remove(checkpoint):
    (checkpoint / "state.json").unlink()
    return "state.json"


def cut_manifest(checkpoint):
    path = checkpoint / "manifest.json"
    path.write_text(path.read_text()[:50])
    return "manifest.json"


@pytest.mark.parametrize("spoil", [truncate, flip_a_bit, remove, cut_manifest])
def test_damaged_checkpoint_is_passed_over_and_named(tmp_path, engine, capsys, spoil):
    save(tmp_path, engine, 1)
    save(tmp_path, engine, 2)
    newest = tmp_path / "checkpoints" / "step-00000002"
    file = spoil(newest)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-00000001"
    warning = capsys.readouterr().err
    assert str(newest) in warning and file in warning
    save(tmp_path, engine, 2)
    assert latest_checkpoint(tmp_path) == newest


def test_no_checkpoint_is_none(tmp_path):
    assert latest_checkpoint(tmp_path) is None


def killed_at(run, engine, call):
    """Save step 2 in a process that is killed at its `call`-th request to the disk; False if it finished."""

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

        os.fsync, os.rename, os.mkdir = counted(os.fsync), counted(os.rename), counted(os.mkdir)
        save(run, engine, 2, keep=1)

    process = FORK.Process(target=body)
    process.start()
    process.join(60)
    return process.exitcode == -signal.SIGKILL


def test_killed_at_any_point_of_a_save_a_whole_checkpoint_is_there(tmp_path, engine):
    points = 0
    while True:
        run = tmp_path / str(points)
        save(run, engine, 1)
        if not killed_at(run, engine, points + 1):
            break
        points += 1
        found = latest_checkpoint(run)
        assert found is not None and damage(found) is None
        # The next attempt goes on as if nothing had happened, and clears up.
        save(run, engine, 3, keep=1)
        assert steps(run) == ["step-00000003"]
    assert points >= 9  # folder, five files, folder synced, renamed, parent synced


def test_full_disk_is_reported_and_older_checkpoints_stay(tmp_path, engine):
    save(tmp_path, engine, 1)

    def body(results):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        try:
            save(tmp_path, engine, 2)
        except InputError as error:
            results.put(str(error))

    results = FORK.SimpleQueue()
    process = FORK.Process(target=body, args=(results,))
    process.start()
    process.join(60)
    assert not results.empty()
    message = results.get()
    assert "run.dir" in message and "step-00000002" in message and "too large" in message
    assert steps(tmp_path) == ["step-00000001"]


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path, engine):
    save(tmp_path, engine, 1)
    for path in latest_checkpoint(tmp_path).iterdir():
        assert path.suffix in (".json", ".safetensors")
