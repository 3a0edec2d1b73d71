"""Any part of any tensor is read back, however ranks had cut it."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perceiver_ar.models.perceiver_ar import PerceiverAR
from pretrain.checkpoint import CheckpointReader
from pretrain.checkpoint.layout import FORMAT
from pretrain.checkpoint.publishing import publish
from pretrain.checkpoint.saver import write_share
from pretrain.distributed import Ranks, RanksError
from pretrain.startup import build_objective
from pretrain.tasks.causal_lm.config import CausalLMConfig
from tests.pretrain.checkpoint.stored_state import CONFIG, StoredState, state_of


@pytest.fixture(scope="module", params=[1, 3, 200], ids=lambda ranks: f"{ranks}-ranks")
def cut(tmp_path_factory, request):
    """A checkpoint cut by that many ranks, of which some own nothing, and what it holds."""
    torch.manual_seed(0)
    model = PerceiverAR(CONFIG)
    folder, files = tmp_path_factory.mktemp("cut"), {}
    for rank in range(request.param):
        engine = StoredState(model, ranks=Ranks(rank, request.param, torch.device("cpu"), None))
        state = json.dumps(state_of(1) | {"format": FORMAT, "shapes": engine.shapes}) if rank == 0 else None
        files |= write_share(folder / "new", rank, list(engine.pieces()), state).files
    checkpoint = folder / "step-00000001"
    publish(folder / "new", checkpoint, files)
    return checkpoint, engine.tensors


@given(data=st.data())
def test_reads_any_part(cut, data):
    checkpoint, tensors = cut
    kind = data.draw(st.sampled_from(sorted(tensors)))
    name = data.draw(st.sampled_from(sorted(tensors[kind])))
    whole = tensors[kind][name].flatten()
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(whole))] * 2)))
    reader = CheckpointReader(checkpoint)
    assert torch.equal(reader.read(kind, name, start, stop), whole[start:stop])
    assert torch.equal(reader.whole(kind, name), tensors[kind][name])


@pytest.fixture
def config():
    return CausalLMConfig(
        run={"dir": "unused"},
        model=asdict(CONFIG),
        data={"corpus": "unused"},
        train={"steps": 1, "global_batch": 1, "micro_batch": 1},
    )


def test_a_runs_model_gets_the_weights(cut, config):
    checkpoint, tensors = cut
    weights = dict(build_objective(config, checkpoint).model.named_parameters())
    assert weights.keys() == tensors["weight"].keys()
    assert all(torch.equal(weight, tensors["weight"][name]) for name, weight in weights.items())


def test_another_model_than_the_runs_is_refused(cut, config):
    other = config.model_copy(update={"model": replace(config.model, num_channels=16)})
    told = r"model: embed.tokens.weight is \(30, 16\) by the configuration but \(30, 8\) in .*step-00000001"
    with pytest.raises(RanksError, match=told):
        build_objective(other, cut[0])
