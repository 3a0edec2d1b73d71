"""Behaviour of Perceiver AR: causality, padding, prefix dropout, caching, precision, checkpointing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perceiver_ar import PerceiverAR, PerceiverARCache, PerceiverARConfig, draw_prefix_keep

SMALL = dict(vocab_size=30, max_seq_len=24, max_latents=8, num_channels=32, num_heads=4, num_layers=3, init_scale=0.1)
PREFIX = SMALL["max_seq_len"] - SMALL["max_latents"]


def build(preset="default", seed=0, **overrides):
    torch.manual_seed(seed)
    options = SMALL | dict(rotary_layers=None, zero_init_output=False) | overrides
    model = PerceiverAR(PerceiverARConfig.preset(preset, **options))
    return model.double().eval()


def tokens(batch=2, length=SMALL["max_seq_len"], seed=0):
    return torch.randint(1, SMALL["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("preset", ["default", "perceiver_io", "paper"])
def test_a_latent_sees_exactly_the_tokens_up_to_itself(preset):
    model, ids = build(preset), tokens(batch=1)
    logits = model(ids, PREFIX).logits
    for changed in range(ids.shape[1]):
        other = ids.clone()
        other[0, changed] = ids[0, changed] % (SMALL["vocab_size"] - 1) + 1
        moved = (model(other, PREFIX).logits != logits).any(-1)[0]
        expected = torch.arange(SMALL["max_latents"]) + PREFIX >= changed
        assert moved.tolist() == expected.tolist()


@pytest.mark.parametrize("preset", ["default", "perceiver_io", "paper"])
@pytest.mark.parametrize("padded", [[0, 1, 2], [5, 9], [PREFIX, PREFIX + 3], [1, PREFIX + 1, PREFIX + 6]])
def test_padding_anywhere_changes_nothing_for_the_other_tokens(preset, padded):
    model, ids = build(preset), tokens(batch=1)
    valid = torch.ones_like(ids, dtype=torch.bool)
    valid[0, padded] = False
    without = ids[valid][None]
    prefix_without = int(valid[0, :PREFIX].sum())
    logits = model(ids.masked_fill(~valid, 0), PREFIX, key_valid=valid).logits[valid[:, PREFIX:]]
    torch.testing.assert_close(logits, model(without, prefix_without).logits[0], rtol=1e-6, atol=1e-6)


def test_loss_is_cross_entropy_with_z_loss_and_padding_latents_get_no_nan():
    model, ids = build(z_loss=1e-2), tokens()
    valid = torch.ones_like(ids, dtype=torch.bool)
    valid[1, :20] = False
    targets = tokens(length=8, seed=1)
    targets[1, :5] = -100
    logits = model(ids, PREFIX, key_valid=valid).logits
    kept = targets != -100
    nll = torch.nn.functional.cross_entropy(logits[kept], targets[kept], reduction="sum")
    z = logits.logsumexp(-1)[kept].square().sum()
    loss = model(ids, PREFIX, key_valid=valid, targets=targets).loss
    torch.testing.assert_close(loss.total, nll + 1e-2 * z)
    loss.total.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("preset", ["default", "perceiver_io", "paper"])
def test_prefix_dropout_equals_masking_what_is_dropped(preset):
    model, ids = build(preset), tokens()
    keep = draw_prefix_keep(3, torch.tensor([7, 8]), PREFIX, 0.5)
    hidden = model(ids, PREFIX, prefix_keep=keep).hidden
    positions_kept = torch.zeros(2, PREFIX, dtype=torch.bool).scatter(1, keep, True)
    masked = masked_prefix_hidden(model, ids, positions_kept)
    torch.testing.assert_close(hidden, masked, rtol=1e-6, atol=1e-6)


def masked_prefix_hidden(model, ids, positions_kept):
    """The published form of prefix dropout: read everything, mask keys, leave positions alone."""
    attention = model.cross_attention.attention
    everything = attention.forward
    valid = torch.cat((positions_kept, torch.ones(len(ids), SMALL["max_latents"], dtype=torch.bool)), 1)
    attention.forward = lambda *args, **kwargs: everything(*args, **{**kwargs, "key_valid": valid})
    try:
        return model(ids, PREFIX).hidden
    finally:
        del attention.forward


@given(
    seed=st.integers(0, 2**31),
    samples=st.lists(st.integers(0, 2**40), min_size=1, max_size=4),
    prefix_length=st.integers(1, 50),
    dropout=st.floats(0, 0.99),
)
def test_prefix_draw_is_a_function_of_seed_and_sample(seed, samples, prefix_length, dropout):
    keep = draw_prefix_keep(seed, torch.tensor(samples), prefix_length, dropout)
    kept = prefix_length - int(prefix_length * dropout)
    if kept == prefix_length:
        assert keep is None
        return
    assert keep.shape == (len(samples), kept)
    assert (keep.diff() > 0).all() and keep.min() >= 0 and keep.max() < prefix_length
    for row, sample in zip(keep, samples, strict=True):
        assert row.equal(draw_prefix_keep(seed, torch.tensor([sample]), prefix_length, dropout)[0])


def test_prefix_draw_keeps_every_position_equally_often():
    keep = draw_prefix_keep(0, torch.arange(4000), 16, 0.5)
    share = torch.bincount(keep.flatten(), minlength=16) / 4000
    assert (share - 0.5).abs().max() < 0.04


def uncached_logits(model, ids, first, max_latents=SMALL["max_latents"]):
    """Logits for the last token of every ids[:, :stop], each from a forward pass of its own."""
    out = []
    for stop in range(first, ids.shape[1] + 1):
        window = ids[:, max(0, stop - SMALL["max_seq_len"]) : stop]
        latents = min(stop - first + 1, max_latents)
        out.append(model(window, window.shape[1] - latents).logits[:, -1:])
    return torch.cat(out, 1)


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_cached_equals_uncached_until_the_latents_are_full(preset):
    model, ids = build(preset), tokens(length=12)
    cache = PerceiverARCache(model.config)
    cached = [model(ids[:, :5], 4, cache=cache).logits]
    cached += [model(ids[:, i : i + 1], 0, cache=cache).logits for i in range(5, 12)]
    torch.testing.assert_close(torch.cat(cached, 1), uncached_logits(model, ids, 5), rtol=1e-6, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(length=st.integers(12, 60), prompt=st.integers(1, 11))
def test_refreshed_cache_equals_uncached_past_max_latents_and_max_seq_len(length, prompt):
    model, ids = build(), tokens(length=length)
    cache = PerceiverARCache(model.config)
    cached = [model(ids[:, :prompt], prompt - 1, cache=cache).logits[:, -1:]]
    for stop in range(prompt + 1, length + 1):
        if cache.latents_seen == SMALL["max_latents"]:
            cache.restart_latents(SMALL["max_latents"] - 1)
        cached.append(model(ids[:, cache.tokens_seen : stop], 0, cache=cache).logits[:, -1:])
    torch.testing.assert_close(torch.cat(cached, 1), uncached_logits(model, ids, prompt), rtol=1e-6, atol=1e-6)


def test_tokens_fed_together_equal_tokens_fed_singly_past_max_latents():
    model, ids = build(), tokens(length=40)
    caches = PerceiverARCache(model.config), PerceiverARCache(model.config)
    for cache in caches:
        model(ids[:, :10], 9, cache=cache)
    together = model(ids[:, 10:], 0, cache=caches[0]).logits
    singly = torch.cat([model(ids[:, i : i + 1], 0, cache=caches[1]).logits for i in range(10, 40)], 1)
    torch.testing.assert_close(together, singly)


def test_cached_decoding_of_a_left_padded_batch_equals_each_row_alone():
    model, ids = build(), tokens(length=14)
    valid = torch.ones_like(ids, dtype=torch.bool)
    valid[1, :3] = False
    cache = PerceiverARCache(model.config)
    batched = [model(ids[:, :8], 6, key_valid=valid[:, :8], cache=cache).logits]
    batched += [model(ids[:, i : i + 1], 0, key_valid=valid[:, i : i + 1], cache=cache).logits for i in range(8, 14)]
    batched = torch.cat(batched, 1)
    torch.testing.assert_close(batched[0], model(ids[:1], 6).logits[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(batched[1], model(ids[1:, 3:], 3).logits[0], rtol=1e-6, atol=1e-6)


def test_a_bf16_cast_leaves_rotary_angles_exact():
    model = PerceiverAR(PerceiverARConfig(**SMALL | dict(max_seq_len=8192)))
    before = model._rotary(torch.arange(8192)[None], 32)
    after = model.bfloat16()._rotary(torch.arange(8192)[None], 32)
    assert all(a.dtype == torch.float32 and a.equal(b) for a, b in zip(after, before, strict=True))
    assert not any("rotary" in name or "freq" in name for name in model.state_dict())


@pytest.mark.parametrize("mode", ["full", "offload"])
def test_activation_checkpointing_changes_no_gradient(mode):
    ids, targets = tokens(), tokens(length=8, seed=1)
    gradients = []
    for checkpointing in ("none", mode):
        model = build(residual_dropout=0.2).train()
        model.activation_checkpointing = checkpointing
        torch.manual_seed(1)
        model(ids, PREFIX, targets=targets).loss.total.backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=0, atol=0)


@pytest.mark.parametrize("mlp", ["gelu", "geglu", "swiglu", "squared_relu"])
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_every_option_learns_a_fixed_sequence(mlp, norm):
    model = build(mlp=mlp, norm=norm, qk_norm=True).float().train()
    ids, targets = tokens(), tokens(length=8, seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model(ids, PREFIX, targets=targets).loss.total / targets.numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


@pytest.mark.parametrize(("length", "prefix_length"), [(24, 15), (25, 17), (10, 10), (10, -1)])
def test_lengths_the_model_cannot_take_are_refused(length, prefix_length):
    with pytest.raises(ValueError, match="1 to 8 latents and at most 24 tokens"):
        build()(tokens(length=length), prefix_length)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (dict(max_latents=25), r"max_latents \(25\) must be at most max_seq_len \(24\)"),
        (dict(num_heads=5), r"num_channels \(32\) must be divisible by num_heads \(5\)"),
        (dict(num_input_channels=16), "latent_projection: true"),
        (dict(prefix_dropout=1.0), r"prefix_dropout \(1.0\)"),
        (dict(rotary_layers=4), r"rotary_layers \(4\)"),
        (dict(zero_init_output=True), "tied_output: false"),
    ],
)
def test_impossible_configurations_are_refused(override, message):
    with pytest.raises(ValueError, match=message):
        PerceiverARConfig(**SMALL | override)
