"""Every way to generate, against decoding without a cache, one prompt at a time, or by definition."""

import pytest
import torch
import torch.nn.functional as F
import transformers
from transformers import GenerationConfig, TextIteratorStreamer, TextStreamer

from perceiver_ar.hf import PerceiverARForCausalLM, byte_tokenizer
from perceiver_ar.hf.contrastive import contrastive_search
from perceiver_ar.models.config import PRESETS
from tests.perceiver_ar.hf.models import CONTEXT, LATENTS, build, tokens

PAST_EVERY_LIMIT = CONTEXT + LATENTS
GREEDY = dict(do_sample=False, pad_token_id=0, eos_token_id=None)
DETAILS = dict(return_dict_in_generate=True, output_logits=True)
MODES = {
    "greedy": {},
    "sampling": dict(do_sample=True, temperature=0.7, top_k=20),
    "beam": dict(num_beams=3),
    "beam-sample": dict(num_beams=2, do_sample=True),
    "contrastive": dict(penalty_alpha=0.6, top_k=4),
}


@pytest.fixture(scope="module")
def model() -> PerceiverARForCausalLM:
    return build()


@pytest.fixture(scope="module")
def assistant() -> PerceiverARForCausalLM:
    return build(num_layers=1, max_latents=4)


def generate(model: PerceiverARForCausalLM, ids: torch.Tensor, **options: object) -> torch.Tensor:
    torch.manual_seed(2)
    return model.generate(ids, **{**GREEDY, "max_new_tokens": PAST_EVERY_LIMIT, **options})


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("mode", MODES)
def test_cached_equals_uncached_until_the_latents_are_full(preset: str, mode: str) -> None:
    options = {**MODES[mode], **DETAILS, "num_latents": 2, "max_new_tokens": LATENTS - 2}
    cached, uncached = (generate(build(preset), tokens(2, 20), use_cache=use, **options) for use in (True, False))
    assert cached.sequences.tolist() == uncached.sequences.tolist()
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(uncached.logits), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("prompt_length, new", [(5, PAST_EVERY_LIMIT), (50, LATENTS + 2)])
def test_refreshing_all_latents_equals_uncached_past_every_limit(
    model: PerceiverARForCausalLM, mode: str, prompt_length: int, new: int
) -> None:
    ids = tokens(2, prompt_length)
    options = {**MODES[mode], **DETAILS, "num_latents": LATENTS, "max_new_tokens": new}
    uncached = generate(model, ids, use_cache=False, **options)
    for cache in ("dynamic", "static"):
        cached = generate(model, ids, latent_policy="refresh", cache_implementation=cache, **options)
        assert cached.sequences.tolist() == uncached.sequences.tolist()
        torch.testing.assert_close(torch.stack(cached.logits), torch.stack(uncached.logits), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["contrastive", "assisted"])
def test_documented_calls_warn_of_nothing(
    mode: str,
    model: PerceiverARForCausalLM,
    assistant: PerceiverARForCausalLM,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logger = transformers.utils.logging.get_logger("transformers")
    monkeypatch.setattr(logger, "propagate", False)  # with CI in the environment it does, and each would count twice
    logger.warning_once.__func__.cache_clear()  # what another test has made it say counts as well
    logger.addHandler(caplog.handler)
    options = {"assisted": {"assistant_model": assistant}, **MODES}[mode]
    try:
        with caplog.at_level("WARNING", "transformers"):
            generate(model, tokens(1, 10), max_new_tokens=4, **options)
            assert caplog.messages == []
            generate(model, tokens(1, 10), max_new_tokens=4, temperature=0.5, **options)
            assert ["temperature" in message for message in caplog.messages] == [True]
    finally:
        logger.removeHandler(caplog.handler)


@pytest.mark.parametrize("num_latents", [1, 5, LATENTS])
@pytest.mark.parametrize("policy", ["sliding", "refresh"])
@pytest.mark.parametrize("kv_norm, cache", [("all", "dynamic"), ("prefix", "static")])
def test_each_step_is_a_forward_pass_over_the_tokens_the_policy_names(
    policy: str, num_latents: int, kv_norm: str, cache: str
) -> None:
    """Exact under refresh; sliding equals it until the latents are full."""
    model, ids, used = build(kv_norm=kv_norm), tokens(2, 20), num_latents
    steps = PAST_EVERY_LIMIT if policy == "refresh" else LATENTS + 1 - num_latents
    steps = min(steps, CONTEXT - 20) if num_latents < LATENTS else steps  # the context a latent read stays as it was
    options = dict(DETAILS, num_latents=num_latents, latent_policy=policy, cache_implementation=cache)
    result = generate(model, ids, max_new_tokens=steps, **options)
    for step in range(steps):
        window = result.sequences[:, max(0, 20 + step - CONTEXT) : 20 + step]
        logits = model.model(window, window.shape[1] - used).logits[:, -1]
        torch.testing.assert_close(result.logits[step], logits, rtol=1e-4, atol=1e-4)
        used = used + 1 if used < LATENTS else num_latents


@pytest.mark.parametrize("prompt_length, num_latents", [(1, 1), (5, LATENTS), (20, 1), (50, 5)])
def test_drafts_change_nothing(
    model: PerceiverARForCausalLM, assistant: PerceiverARForCausalLM, prompt_length: int, num_latents: int
) -> None:
    ids = tokens(1, prompt_length)
    expected = generate(model, ids, num_latents=num_latents).tolist()
    assert generate(model, ids, num_latents=num_latents, assistant_model=assistant).tolist() == expected
    assert generate(model, ids, num_latents=num_latents, prompt_lookup_num_tokens=4).tolist() == expected


def test_drafts_change_nothing_behind_padding(model: PerceiverARForCausalLM, assistant: PerceiverARForCausalLM) -> None:
    padded = F.pad(tokens(1, 10), (5, 0))
    expected = generate(model, padded, attention_mask=(padded != 0).long()).tolist()
    for drafts in ({"assistant_model": assistant}, {"prompt_lookup_num_tokens": 4}):
        assert generate(model, padded, attention_mask=(padded != 0).long(), **drafts).tolist() == expected


@pytest.mark.parametrize("drafts", ["by an equal model", "copied"])
def test_drafts_that_are_right_save_steps(drafts: str) -> None:
    model, equal = (build(init_scale=0.02) for _ in range(2))  # so small that they repeat one token
    equal.generation_config.assistant_confidence_threshold = 0.0
    prompt = generate(model, tokens(1, 9), max_new_tokens=100)
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    generate(model, prompt, **({"prompt_lookup_num_tokens": 8} if drafts == "copied" else {"assistant_model": equal}))
    assert len(calls) < PAST_EVERY_LIMIT / 4


@pytest.mark.parametrize(
    "preset, mode", [*((preset, "greedy") for preset in PRESETS), ("default", "beam"), ("default", "contrastive")]
)
@pytest.mark.parametrize(
    "options",
    [
        {"latent_policy": "sliding", "num_latents": 6},
        {"latent_policy": "refresh", "num_latents": 5},
        {"latent_policy": "refresh", "num_latents": LATENTS},
        {"latent_policy": "sliding", "num_latents": 6, "cache_implementation": "static"},
        {"latent_policy": "refresh", "num_latents": 5, "cache_implementation": "static"},
        {"use_cache": False, "num_latents": 6},
    ],
)
def test_left_padded_batch_equals_single_prompts(preset: str, mode: str, options: dict[str, object]) -> None:
    model = build(preset)
    long, short = tokens(1, 20), tokens(1, 7)
    both = torch.cat((long, F.pad(short, (13, 0))))
    new = CONTEXT - 20 if model.config.learned_positions else CONTEXT - 20 + 4
    options = {"max_new_tokens": new, **MODES[mode], **options}

    batch = generate(model, both, attention_mask=(both != 0).long(), **options)

    assert batch[0].tolist() == generate(model, long, **options)[0].tolist()
    assert batch[1, 13:].tolist() == generate(model, short, **options)[0].tolist()


def test_contrastive_search_takes_what_its_score_says(model: PerceiverARForCausalLM) -> None:
    alpha, candidates, ids = 0.6, 4, tokens(1, 12)
    result = generate(model, ids, penalty_alpha=alpha, top_k=candidates, num_latents=2, max_new_tokens=6)
    for stop in range(12, 18):
        read = model.model(result[:, :stop], 10)
        probabilities, tried = read.logits[0, -1].softmax(-1).topk(candidates)
        scores = []
        for probability, token in zip(probabilities, tried, strict=True):
            longer = torch.cat((result[:, :stop], token.view(1, 1)), dim=1)
            similarity = F.cosine_similarity(model.model(longer, 10).hidden[0, -1:], read.hidden[0]).max()
            scores.append((1 - alpha) * probability - alpha * similarity)
        assert result[0, stop] == tried[torch.stack(scores).argmax()]


def test_contrastive_search_without_penalty_is_greedy(model: PerceiverARForCausalLM) -> None:
    ids = tokens(2, 30)
    options = dict(custom_generate=contrastive_search, penalty_alpha=0.0, top_k=4)
    assert generate(model, ids, **options).tolist() == generate(model, ids).tolist()


def test_contrastive_search_may_try_the_whole_vocabulary(model: PerceiverARForCausalLM) -> None:
    every, more = (generate(model, tokens(1, 9), penalty_alpha=0.6, top_k=k, max_new_tokens=10) for k in (64, 100))
    assert every.tolist() == more.tolist()


def test_contrastive_search_ends_rows_at_their_end_token(model: PerceiverARForCausalLM) -> None:
    ids = tokens(3, 12)
    options = dict(penalty_alpha=0.4, top_k=3, max_new_tokens=30)
    unending = generate(model, ids, **options)
    end = unending[0, 16].item()
    ended = generate(model, ids, eos_token_id=end, **options)
    for row, free in zip(ended.tolist(), unending.tolist(), strict=True):
        stop = free.index(end, 12) + 1 if end in free[12:] else len(free)
        assert row[:stop] == free[: len(row)][:stop]
        assert not any(row[stop:])


def test_generation_config_object_may_ask_for_contrastive_search(model: PerceiverARForCausalLM) -> None:
    config = GenerationConfig(penalty_alpha=0.6, top_k=4, max_new_tokens=20, **GREEDY)
    expected = generate(model, tokens(1, 9), penalty_alpha=0.6, top_k=4, max_new_tokens=20)
    assert model.generate(tokens(1, 9), config).tolist() == expected.tolist()


@pytest.mark.parametrize("mode", [{}, {"penalty_alpha": 0.6, "top_k": 4}, {"prompt_lookup_num_tokens": 3}])
def test_streams_the_text_it_returns(mode: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = byte_tokenizer(CONTEXT)
    model = build(vocab_size=len(tokenizer))
    ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
    suppressed = dict(suppress_tokens=list(range(6)))

    iterator = TextIteratorStreamer(tokenizer)
    result = generate(model, ids, streamer=iterator, **suppressed, **mode)
    generate(model, ids, streamer=TextStreamer(tokenizer, skip_prompt=True), **suppressed, **mode)

    assert "".join(iterator) == tokenizer.decode(result[0])
    assert capsys.readouterr().out.rstrip("\n") == tokenizer.decode(result[0, ids.shape[1] :]).rstrip("\n")


def test_a_conversation_goes_on_from_its_cache(model: PerceiverARForCausalLM) -> None:
    first = generate(model, tokens(1, 12), max_new_tokens=40, return_dict_in_generate=True)
    longer = torch.cat((first.sequences, tokens(1, 25)), dim=1)
    answer = generate(model, longer, past_key_values=first.past_key_values, max_new_tokens=5, **DETAILS)

    cache = None
    for new in (longer[:, :12], *longer[:, 12:].split(1, dim=1)):
        output = model(new, past_key_values=cache, prefix_length=12 - LATENTS // 2, use_cache=True)
        cache = output.past_key_values
    torch.testing.assert_close(answer.logits[0], output.logits[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("new", [1, LATENTS + 1, CONTEXT + 20])
@pytest.mark.parametrize("num_latents", [3, LATENTS])
def test_a_conversation_goes_on_under_refresh_as_if_it_were_a_prompt(
    model: PerceiverARForCausalLM, new: int, num_latents: int
) -> None:
    options = dict(num_latents=num_latents, latent_policy="refresh")
    first = generate(model, tokens(1, 12), max_new_tokens=10, return_dict_in_generate=True, **options)
    longer = torch.cat((first.sequences, tokens(1, new)), dim=1)
    used = first.past_key_values.get_seq_length(1) + 1 + new
    answer = generate(model, longer, past_key_values=first.past_key_values, max_new_tokens=1, **DETAILS, **options)

    window = longer[:, -CONTEXT:]
    used = used if used <= LATENTS else num_latents
    expected = model.model(window, window.shape[1] - used).logits[:, -1]
    torch.testing.assert_close(answer.logits[0], expected, rtol=1e-4, atol=1e-4)
    assert answer.past_key_values.get_seq_length() == longer.shape[1]


def test_generation_past_learned_positions_is_refused_with_a_cache_only() -> None:
    model = build(learned_positions=True)
    with pytest.raises(ValueError, match="learned positions end at max_seq_len"):
        generate(model, tokens(1, 24), max_new_tokens=10)
    assert generate(model, tokens(1, 24), max_new_tokens=10, use_cache=False).shape == (1, 34)
    assert generate(model, tokens(1, 24), max_new_tokens=8).shape == (1, CONTEXT)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_latents": 0}, "num_latents"),
        ({"num_latents": LATENTS + 1}, "num_latents"),
        ({"latent_policy": "full"}, "latent_policy"),
        ({"cache_implementation": "offloaded"}, "cache_implementation"),
        ({"prefill_chunk_size": 4}, "prefill_chunk_size"),
        ({"prompt_lookup_num_tokens": 2, "latent_policy": "refresh"}, "latent_policy='sliding'"),
        ({"prompt_lookup_num_tokens": 2, "cache_implementation": "static"}, "dynamic cache"),
        ({"inputs_embeds": torch.zeros(1, 4, 32)}, "inputs_embeds"),
    ],
)
def test_impossible_generation_is_refused(
    model: PerceiverARForCausalLM, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        generate(model, tokens(1, 8), max_new_tokens=2, **options)
