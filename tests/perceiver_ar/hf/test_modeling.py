import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

from perceiver_ar.hf import PerceiverARForCausalLM, PerceiverARHFConfig, PerceiverARModel
from perceiver_ar.models.config import PRESETS, PerceiverARConfig

CONTEXT, LATENTS = 48, 16
# Large initial weights make next-token distributions that differ clearly from one another.
SIZES = dict(
    vocab_size=64, max_seq_len=CONTEXT, max_latents=LATENTS, num_channels=32, num_heads=4, num_layers=2, init_scale=0.3
)
GREEDY = dict(do_sample=False, pad_token_id=0, eos_token_id=None)


@pytest.fixture(scope="module")
def model() -> PerceiverARForCausalLM:
    torch.manual_seed(0)
    return PerceiverARForCausalLM(PerceiverARHFConfig(**SIZES)).eval()


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(6, 64, shape, generator=torch.Generator().manual_seed(sum(shape)))


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


@pytest.mark.parametrize("length, prefix_length", [(10, 0), (30, 20), (48, 32)])
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
    labels[0, 20:24] = -100
    output = model(ids, labels=labels, prefix_length=18)
    expected = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 19:].flatten(), ignore_index=-100)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("mode", [{}, {"num_beams": 3}, {"do_sample": True, "eos_token_id": None}])
def test_cached_equals_uncached_until_the_latents_are_full(preset: str, mode: dict[str, object]) -> None:
    torch.manual_seed(1)
    config = PerceiverARConfig.preset(preset, **SIZES | {"zero_init_output": False})
    model = PerceiverARForCausalLM(PerceiverARHFConfig(**dataclasses.asdict(config))).eval()

    def generate(use_cache: bool) -> torch.Tensor:
        torch.manual_seed(2)
        return model.generate(tokens(2, 20), max_new_tokens=9, use_cache=use_cache, **{**GREEDY, **mode})

    assert generate(True).tolist() == generate(False).tolist()


@pytest.mark.parametrize("prompt_length", [5, 40, 100])
def test_refreshing_all_latents_equals_uncached_past_every_limit(
    model: PerceiverARForCausalLM, prompt_length: int
) -> None:
    ids = tokens(2, prompt_length)
    options = dict(max_new_tokens=2 * CONTEXT, num_latents=LATENTS, **GREEDY)
    cached = model.generate(ids, latent_policy="refresh", **options)
    assert cached.tolist() == model.generate(ids, use_cache=False, **options).tolist()


@pytest.mark.parametrize(
    "options",
    [
        {"latent_policy": "sliding", "num_latents": 10},
        {"latent_policy": "refresh", "num_latents": 7},
        {"latent_policy": "refresh", "num_latents": LATENTS},
        {"use_cache": False, "num_latents": 10},
    ],
)
def test_left_padded_batch_equals_single_prompts(model: PerceiverARForCausalLM, options: dict[str, object]) -> None:
    long, short = tokens(1, 20), tokens(1, 7)
    padded = torch.cat((torch.zeros(1, 13, dtype=torch.long), short), dim=1)
    both = torch.cat((long, padded))
    options = {"max_new_tokens": 60, **GREEDY, **options}

    batch = model.generate(both, attention_mask=(both != 0).long(), **options)

    assert batch[0].tolist() == model.generate(long, **options)[0].tolist()
    assert batch[1, 13:].tolist() == model.generate(short, **options)[0].tolist()


def test_generation_past_learned_positions_is_refused_with_a_cache_only() -> None:
    model = PerceiverARForCausalLM(PerceiverARHFConfig(**SIZES, learned_positions=True)).eval()
    with pytest.raises(ValueError, match="learned positions end at max_seq_len"):
        model.generate(tokens(1, 40), max_new_tokens=10, **GREEDY)
    assert model.generate(tokens(1, 40), max_new_tokens=10, use_cache=False, **GREEDY).shape == (1, 50)
    assert model.generate(tokens(1, 40), max_new_tokens=8, **GREEDY).shape == (1, 48)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_latents": 0}, "num_latents"),
        ({"num_latents": 17}, "num_latents"),
        ({"latent_policy": "full"}, "latent_policy"),
        ({"cache_implementation": "static"}, "cache_implementation"),
        ({"prompt_lookup_num_tokens": 2}, "assisted decoding"),
    ],
)
def test_impossible_generation_is_refused(
    model: PerceiverARForCausalLM, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate(tokens(1, 8), max_new_tokens=2, **GREEDY, **options)


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
    torch.testing.assert_close(bare(ids).last_hidden_state, model.model(ids, 14).hidden, rtol=0, atol=0)
