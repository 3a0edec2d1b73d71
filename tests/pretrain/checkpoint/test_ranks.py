"""Ranks agree on what was saved and what is whole, whichever of them the system refuses."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pretrain.checkpoint import CheckpointReader, checkpoint_path

WORKER = Path(__file__).with_name("saver_worker.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def output(folder, start_ranks, finish_ranks):
    return finish_ranks(start_ranks([WORKER, folder], 2))


@pytest.fixture(params=[0, 1])
def seen(folder, output, request):
    return json.loads((folder / f"rank-{request.param}.json").read_text())


def test_every_rank_writes_its_share(folder, output):
    checkpoint = checkpoint_path(folder / "run", 2)
    reader = CheckpointReader(checkpoint)
    shares = [load_file(checkpoint / f"rank-0000{rank}.safetensors") for rank in (0, 1)]
    for name, shape in reader.state["shapes"].items():
        whole = reader.whole("exp_avg", name)
        assert whole.shape == tuple(shape)
        first, second = (
            [tensor for key, tensor in share.items() if key.startswith(f"exp_avg/{name}:")] for share in shares
        )
        assert [*first[0].tolist(), *second[0].tolist()] == whole.flatten().tolist()
    assert reader.state["world_size"] == 2


def test_a_failure_of_one_rank_is_everyones(folder, output, seen):
    assert seen["whole"] == [True, True]
    assert seen["failed"] == [False, True, False]
    assert (seen["failures"], seen["saved_step"]) == (1, 4)
    assert "run.dir: 2 checkpoints in a row" in seen["fatal"]
    warnings = [line for line in output.splitlines() if "was not written" in line]
    assert ["rank-00001.safetensors: File too large" in line for line in warnings] == [True, False]
    assert ["rank-00000.safetensors: File too large" in line for line in warnings] == [False, True]


def test_damage_that_one_rank_finds_is_everyones(folder, output, seen):
    assert seen["newest"] == str(checkpoint_path(folder / "run", 4))
    assert seen["newest_undamaged"] == str(checkpoint_path(folder / "run", 2))
    assert output.count("passing over damaged checkpoint") == 1
