"""Cached decoding against what it is defined to compute, for both kinds of buffers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perceiver_ar import PerceiverAR, PerceiverARCache, PerceiverARConfig

CONTEXT, LATENTS, LONGEST = 24, 8, 90
SIZES = dict(vocab_size=30, max_seq_len=CONTEXT, max_latents=LATENTS, num_channels=32, num_heads=4, num_layers=3)


def build(**overrides):
    torch.manual_seed(0)
    return PerceiverAR(PerceiverARConfig(**SIZES | dict(init_scale=0.1) | overrides)).double().eval()


def tokens(batch=2, length=LONGEST, seed=0):
    return torch.randint(1, SIZES["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(seed))


def by_definition(model, ids, prompt, prefix):
    """Hidden states of all tokens behind `prefix`, in one pass whose masks say what each of them sees."""
    position = torch.arange(ids.shape[1])
    newest = position.clamp(min=prompt - 1)  # a prompt is read as a whole: none of its latents sees past its window
    causal = position <= position[:, None]
    context = (causal & (position > newest[:, None] - CONTEXT))[prefix:][None]
    latents = (causal & (position > position[:, None] - LATENTS))[prefix:, prefix:][None]
    embedded = model.embed(ids, position[None])
    rotary = model._rotary(position[None], SIZES["num_channels"])
    hidden = model.cross_attention(
        embedded[:, prefix:],
        embedded,
        rotary_q=rotary.last(ids.shape[1] - prefix),
        rotary_k=rotary,
        store=lambda k, v: (k, v, context),
    )
    for layer in model.self_attention:
        rotary = rotary.last(hidden.shape[1])
        hidden = layer(hidden, rotary=rotary, store=lambda k, v: (k, v, latents))
    return model.output_norm(hidden)


@settings(max_examples=20)
@given(prompt=st.integers(1, CONTEXT), latents=st.integers(1, LATENTS), pieces=st.lists(st.integers(1, 30), max_size=4))
def test_tokens_in_pieces_of_any_size_see_what_they_are_defined_to_see(prompt, latents, pieces):
    model, ids = build(), tokens()
    prefix = max(0, prompt - latents)
    cache = PerceiverARCache(model.config)
    hidden = [model(ids[:, :prompt], prefix, cache=cache).hidden]
    for piece in pieces:
        new = slice(cache.tokens_seen, min(LONGEST, cache.tokens_seen + piece))
        if new.start < new.stop:
            hidden.append(model(ids[:, new], 0, cache=cache).hidden)
    expected = by_definition(model, ids[:, : cache.tokens_seen], prompt, prefix)
    torch.testing.assert_close(torch.cat(hidden, 1), expected)


@settings(max_examples=20)
@given(data=st.data(), prompt=st.integers(1, CONTEXT))
def test_tokens_taken_back_leave_no_trace(data, prompt):
    model = build()
    valid = torch.ones(2, LONGEST, dtype=torch.bool)
    valid[1, : data.draw(st.integers(0, prompt - 1))] = False
    cache, expected = PerceiverARCache(model.config), PerceiverARCache(model.config)
    prefix = max(0, prompt - data.draw(st.integers(1, LATENTS)))
    kept = tokens(length=prompt)
    for each in (cache, expected):
        model(kept, prefix, key_valid=valid[:, :prompt], cache=each)
    for attempt in range(data.draw(st.integers(1, 5))):
        drafts = tokens(length=data.draw(st.integers(1, 12)), seed=attempt + 1)
        model(drafts, 0, cache=cache)
        accepted = data.draw(st.integers(0, drafts.shape[1]))
        cache.crop(drafts.shape[1] - accepted)
        for i in range(accepted):
            model(drafts[:, i : i + 1], 0, cache=expected)
    assert cache.tokens_seen == expected.tokens_seen
    last = tokens(length=3, seed=99)
    torch.testing.assert_close(model(last, 0, cache=cache).hidden, model(last, 0, cache=expected).hidden)


def test_prompt_tokens_can_be_taken_back_and_read_again():
    model, ids = build(), tokens(length=21)
    cache, expected = PerceiverARCache(model.config), PerceiverARCache(model.config)
    model(ids[:, :20], 19, cache=cache)
    cache.crop(1)
    assert (cache.tokens_seen, cache.latents_seen) == (19, 0)
    first = model(ids[:, :20], 19, cache=expected).logits
    second = model(ids[:, 20:], 0, cache=expected).logits
    torch.testing.assert_close(model(ids[:, 19:], 0, cache=cache).logits, torch.cat((first, second), 1))


def test_buffers_have_room_for_little_more_than_the_window():
    config = PerceiverARConfig(**SIZES | dict(max_seq_len=1000))
    model, cache = PerceiverAR(config), PerceiverARCache(config)
    ids = tokens(length=1200)
    rooms = []
    with torch.inference_mode():
        for new in (ids[:, :1000], *ids[:, 1000:].split(1, dim=1)):
            model(new, max(0, new.shape[1] - LATENTS), cache=cache)
            rooms.append(cache.cross.buffers[0][0].shape[2])
    assert set(rooms) == {1000 + 2 * 64}


def test_more_tokens_than_are_kept_cannot_be_taken_back():
    model, ids = build(), tokens(length=120 + CONTEXT)
    cache = PerceiverARCache(model.config)
    model(ids[:, :CONTEXT], CONTEXT - 1, cache=cache)
    for i in range(CONTEXT, ids.shape[1]):
        model(ids[:, i : i + 1], 0, cache=cache)
    with pytest.raises(ValueError, match=r"115 tokens cannot be taken back"):
        cache.crop(115)
    with pytest.raises(ValueError, match=r"200 tokens cannot be taken back"):
        cache.crop(200)


def test_a_refused_crop_changes_nothing():
    """Far into decoding, where the context still has what the latents have let go."""
    config = PerceiverARConfig(**SIZES | dict(max_seq_len=400))
    model, ids = PerceiverAR(config), tokens(length=300)
    caches = PerceiverARCache(config), PerceiverARCache(config)
    for cache in caches:
        model(ids[:, :10], 5, cache=cache)
        for i in range(10, 299):
            model(ids[:, i : i + 1], 0, cache=cache)
    with pytest.raises(ValueError, match=r"150 tokens cannot be taken back"):
        caches[0].crop(150)
    first, second = (model(ids[:, 299:], 0, cache=cache).logits for cache in caches)
    assert torch.equal(first, second)


@pytest.mark.parametrize("restarted", [None, 0, 3, LATENTS - 1])
@pytest.mark.parametrize("padded", [0, 5])
def test_static_cache_equals_dynamic_cache_past_every_limit(restarted, padded):
    model, ids = build(), tokens()
    valid = torch.ones_like(ids, dtype=torch.bool)
    valid[1, :padded] = False
    caches = PerceiverARCache(model.config), PerceiverARCache(model.config, static_tokens=LONGEST)
    logits = []
    for cache in caches:
        begin = 0
        logits.append([])
        for stop in range(10, LONGEST + 1):
            if restarted is not None and cache.latents_seen == LATENTS:
                cache.restart_latents(restarted)
                begin = stop - 1 - restarted
            new = slice(begin, stop)
            output = model(ids[:, new], 4 if stop == 10 else 0, key_valid=valid[:, new], cache=cache)
            logits[-1].append(output.logits[:, -1])
            begin = stop
    torch.testing.assert_close(torch.stack(logits[0]), torch.stack(logits[1]))


def test_static_cache_never_allocates_again():
    model, ids = build(), tokens()
    cache = PerceiverARCache(model.config, static_tokens=1000)
    model(ids[:, :CONTEXT], CONTEXT - 1, cache=cache)
    addresses = [tensor.data_ptr() for window in (cache.cross, cache.latents) for kv in window.buffers for tensor in kv]
    for i in range(CONTEXT, LONGEST):
        model(ids[:, i : i + 1], 0, cache=cache)
    after = [tensor.data_ptr() for window in (cache.cross, cache.latents) for kv in window.buffers for tensor in kv]
    assert addresses == after
    assert {window.room for window in (cache.cross, cache.latents)} == {CONTEXT + LATENTS, LATENTS}


def test_static_cache_refuses_what_it_cannot_do():
    model, ids = build(), tokens()
    cache = PerceiverARCache(model.config, static_tokens=LONGEST)
    model(ids[:, :10], 5, cache=cache)
    with pytest.raises(ValueError, match="one token at a time"):
        model(ids[:, 10:12], 0, cache=cache)
    with pytest.raises(ValueError, match="takes no tokens back"):
        cache.crop(1)


@pytest.mark.parametrize("static_tokens", [None, LONGEST])
def test_rows_can_be_reordered_repeated_and_dropped(static_tokens):
    model, ids = build(), tokens(batch=3, length=20)
    valid = torch.ones_like(ids, dtype=torch.bool)
    valid[1, :4] = False
    cache = PerceiverARCache(model.config, static_tokens)
    model(ids[:, :12], 8, key_valid=valid[:, :12], cache=cache)
    for i in range(12, 16):
        model(ids[:, i : i + 1], 0, cache=cache)
    rows = torch.tensor([2, 1, 1, 0])
    cache.reorder(rows)
    logits = model(ids[rows, 16:17], 0, cache=cache).logits
    expected = PerceiverARCache(model.config)
    model(ids[rows, :12], 8, key_valid=valid[rows, :12], cache=expected)
    model(ids[rows, 12:16], 0, cache=expected)
    torch.testing.assert_close(logits, model(ids[rows, 16:17], 0, cache=expected).logits)


@pytest.mark.parametrize("static_tokens", [None, LONGEST])
@pytest.mark.parametrize("length", [14, 30, LONGEST - 1])
def test_rows_of_one_prompt_can_be_reordered_behind_it(static_tokens, length):
    model, prompt = build(), tokens(batch=1, length=10).expand(3, -1)
    ids = torch.cat((prompt, tokens(batch=3, length=length - 10, seed=1)), dim=1)
    rows = torch.tensor([2, 0, 2])
    logits = []
    for order, static in ((ids, static_tokens), (ids[rows], None)):
        cache = PerceiverARCache(model.config, static)
        model(prompt, 5, cache=cache)
        for i in range(10, length):
            model(order[:, i : i + 1], 0, cache=cache)
        if order is ids:
            cache.reorder_newest(rows, length - 10)
        logits.append(model(ids[:, :1], 0, cache=cache).logits)
    torch.testing.assert_close(*logits)
