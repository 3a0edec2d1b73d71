import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

from perceiver_ar.hf import PerceiverARForCausalLM, PerceiverARHFConfig, PerceiverARModel
from perceiver_ar.models.config import PRESETS, PerceiverARConfig
from tests.perceiver_ar.hf.models import CONTEXT, LATENTS, SIZES, build, tokens


@pytest.fixture(scope="module")
def model() -> PerceiverARForCausalLM:
    return build()


@pytest.mark.parametrize("preset", PRESETS)
def test_config_holds_every_field_once_and_survives_saving(preset: str, tmp_path: Path) -> None:
    config = PerceiverARConfig.preset(preset, **SIZES)
    PerceiverARHFConfig(**dataclasses.asdict(config)).save_pretrained(tmp_path)

    loaded = AutoConfig.from_pretrained(tmp_path)

    assert loaded.perceiver_ar == config
    assert (loaded.hidden_size, loaded.num_attention_heads, loaded.num_hidden_layers) == (32, 4, 3)


def test_config_refuses_what_makes_no_model() -> None:
    with pytest.raises(ValueError, match=r"max_latents \(100\) must be at most max_seq_len \(10\)"):
        PerceiverARHFConfig(max_seq_len=10, max_latents=100)


def test_starts_with_the_weights_perceiver_ar_draws(model: PerceiverARForCausalLM) -> None:
    outputs = torch.cat([layer.mlp.down.weight.flatten() for layer in model.model.self_attention])
    assert outputs.std().item() == pytest.approx(0.3 / 6**0.5, rel=0.05)  # depth-scaled: 2 (num_layers + 1) branches
    assert model.model.embed.tokens.weight.std().item() == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize("length, prefix_length", [(8, 0), (30, 24), (CONTEXT, CONTEXT - LATENTS)])
def test_logits_are_those_of_perceiver_ar(model: PerceiverARForCausalLM, length: int, prefix_length: int) -> None:
    ids = tokens(2, length)
    expected = model.model(ids, prefix_length).logits
    torch.testing.assert_close(model(ids, prefix_length=prefix_length).logits, expected, rtol=0, atol=0)


def test_takes_the_last_tokens_of_a_long_text_as_latents_by_default(model: PerceiverARForCausalLM) -> None:
    ids = tokens(1, 100)
    expected = model.model(ids[:, -CONTEXT:], CONTEXT - LATENTS).logits
    torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=0)


def test_labels_give_the_shifted_mean_loss_of_the_latents(model: PerceiverARForCausalLM) -> None:
    ids = tokens(2, 30)
    labels = ids.clone()
    labels[0, 24:26] = -100
    output = model(ids, labels=labels, prefix_length=22)
    expected = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 23:].flatten(), ignore_index=-100)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_saves_and_loads_through_the_auto_classes(tied: bool, tmp_path: Path) -> None:
    model = PerceiverARForCausalLM(PerceiverARHFConfig(**SIZES, tied_output=tied, output_bias=True)).eval()
    model.save_pretrained(tmp_path)
    ids = tokens(2, 30)

    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tmp_path)
    bare: PreTrainedModel = AutoModel.from_pretrained(tmp_path)

    assert isinstance(bare, PerceiverARModel)
    assert (loaded.get_output_embeddings() is None) == tied
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0, atol=0)
    torch.testing.assert_close(bare(ids).last_hidden_state, model.model(ids, 30 - LATENTS).hidden, rtol=0, atol=0)


@pytest.mark.parametrize("preset", PRESETS)
def test_weights_that_a_checkpoint_lacks_are_drawn_and_no_others(preset: str, tmp_path: Path) -> None:
    model = build(preset)
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight) if name.endswith("bias") else None
    lacking = {
        "model.output_bias",
        "model.cross_attention.attention.o_proj.bias",
        "model.self_attention.0.mlp.up.weight",
    }
    weights = model.state_dict()
    model.save_pretrained(tmp_path, state_dict={name: weights[name] for name in weights.keys() - lacking})

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()

    assert loaded.keys() == weights.keys()
    for name, weight in loaded.items():
        if name not in lacking:
            assert weight.equal(weights[name]), name
        elif name.endswith("bias"):
            assert not weight.any(), name
        else:
            assert weight.std().item() == pytest.approx(SIZES["init_scale"], rel=0.1)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [80, 50])
def test_the_vocabulary_can_be_resized(preset: str, size: int, tmp_path: Path) -> None:
    model, ids = build(preset), tokens(1, 12) % 50
    before = model(ids).logits
    model.resize_token_embeddings(size)
    after = model(ids).logits
    torch.testing.assert_close(after[..., :50], before[..., :50])
    assert after.shape[-1] == size

    model.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).eval()(ids).logits.equal(after)


def test_is_loaded_onto_one_device(model: PerceiverARForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    ids = tokens(2, 30)
    automatic = AutoModelForCausalLM.from_pretrained(tmp_path, device_map="auto")
    assert automatic(ids).logits.equal(model(ids).logits)
    offloaded = AutoModelForCausalLM.from_pretrained(
        tmp_path, device_map={"": "disk"}, offload_folder=tmp_path / "disk"
    )
    with pytest.raises(ValueError, match="cannot run with offloaded weights"):
        offloaded(ids)


def test_gives_the_logits_of_the_last_latents_where_no_more_are_wanted(model: PerceiverARForCausalLM) -> None:
    ids = tokens(2, 30)
    torch.testing.assert_close(model(ids, logits_to_keep=3).logits, model(ids).logits[:, -3:])


def test_returns_tuples_and_hidden_states_on_request(model: PerceiverARForCausalLM) -> None:
    ids = tokens(2, 30)
    logits, hidden = model(ids, use_cache=False, output_hidden_states=True, return_dict=False)
    torch.testing.assert_close(logits, model(ids).logits)
    torch.testing.assert_close(hidden[-1], model.model(ids, 30 - LATENTS).hidden)


def test_embeddings_as_input_are_refused(model: PerceiverARForCausalLM) -> None:
    with pytest.raises(ValueError, match="inputs_embeds are not available"):
        model(inputs_embeds=torch.zeros(1, 4, 32))


def test_prefix_dropout_is_for_training_only() -> None:
    ids, model = tokens(2, CONTEXT), build(prefix_dropout=0.5)
    exact = model(ids).logits
    torch.testing.assert_close(exact, build().model(ids, CONTEXT - LATENTS).logits)
    torch.manual_seed(3)
    first, second = (model.train()(ids).logits for _ in range(2))
    torch.manual_seed(3)
    assert first.equal(model(ids).logits)
    assert not first.equal(second) and not first.equal(exact)
