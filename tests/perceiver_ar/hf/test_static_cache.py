"""Decoding steps with a static cache, compiled."""

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import CompileConfig

from tests.perceiver_ar.hf.models import CONTEXT, LATENTS, build, tokens

NEW_TOKENS = CONTEXT + LATENTS


def compiled_with(backend: str) -> CompileConfig:
    config = CompileConfig(backend=backend, mode=None, fullgraph=True, dynamic=False)
    config._compile_all_devices = True  # on a CPU, `generate` does not compile by itself
    return config


@pytest.mark.parametrize(
    "options, graphs",
    [
        ({}, 1),
        ({"attention_mask": (torch.arange(20) >= 5).long()[None]}, 1),
        ({"latent_policy": "refresh", "num_latents": 5}, 2),  # a step of one token and one that reads five again
    ],
)
def test_steps_are_compiled_once_and_equal_those_with_a_dynamic_cache(options: dict[str, object], graphs: int) -> None:
    model, ids = build(), tokens(1, 20)
    options = dict(options, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0, eos_token_id=None)
    torch._dynamo.reset()
    counters.clear()

    dynamic = model.generate(ids, **options)
    for _ in range(2):
        static = model.generate(ids, cache_implementation="static", compile_config=compiled_with("eager"), **options)
        assert static.tolist() == dynamic.tolist()

    assert counters["stats"]["unique_graphs"] == graphs


@pytest.mark.slow
def test_inductor_compiles_the_steps() -> None:
    model, ids = build(), tokens(1, 20)
    options = dict(max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0, eos_token_id=None)
    torch._dynamo.reset()
    static = model.generate(ids, cache_implementation="static", compile_config=compiled_with("inductor"), **options)
    assert static.tolist() == model.generate(ids, **options).tolist()


def test_a_static_cache_is_not_used_beyond_its_size() -> None:
    model, ids = build(), tokens(1, 10)
    options = dict(do_sample=False, pad_token_id=0, eos_token_id=None, cache_implementation="static")
    first = model.generate(ids, max_new_tokens=5, return_dict_in_generate=True, **options)
    del options["cache_implementation"]
    with pytest.raises(
        ValueError, match=r"static cache has room for 14 tokens, and 20 are to be read: .*max_cache_len"
    ):
        model.generate(first.sequences, past_key_values=first.past_key_values, max_new_tokens=6, **options)
