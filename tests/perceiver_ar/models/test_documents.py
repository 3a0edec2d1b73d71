"""Documents packed into a window: each computes what it would compute alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perceiver_ar import PerceiverAR, PerceiverARCache, PerceiverARConfig, draw_prefix_keep
from perceiver_ar.blocks.attend import use_backend

CONTEXT, LATENTS = 24, 8
PREFIX = CONTEXT - LATENTS
VOCAB = 30
BACKENDS = ["flash", "sdpa", "reference"]
PRESETS = ["default", "perceiver_io", "paper"]
PACKINGS = [
    ([24], [16, 8]),  # the border between prefix and latents is one of documents too
    ([10, 10, 4], [15, 9]),
    ([15, 1, 1, 7], [3, 5, 9, 2, 1, 4]),
]


@pytest.fixture(autouse=True)
def _automatic_backend():
    yield
    use_backend("auto")


def build(preset="default"):
    torch.manual_seed(0)
    options = dict(num_channels=32, num_heads=4, num_layers=2, rotary_layers=None, init_scale=0.1)
    config = PerceiverARConfig.preset(
        preset, vocab_size=VOCAB, max_seq_len=CONTEXT, max_latents=LATENTS, **options | dict(zero_init_output=False)
    )
    return PerceiverAR(config).double().eval()


def tokens(batch, length, seed=0):
    return torch.randint(1, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def pack(*rows):
    """(batch, tokens) document numbers of rows packed from documents of these lengths."""
    return torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in rows])


def with_gradients(model, ids, prefix_length, targets, **options):
    """Logits, and the gradient of the loss in each parameter."""
    loss = model(ids, prefix_length, targets=targets, **options).loss.total
    gradients = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
    return model(ids, prefix_length, **options).logits.detach(), gradients


def alone(model, ids, segments, targets, *, valid=None, kept=None):
    """`with_gradients` of one packed row (tokens,), from a window for each document.

    Without the padding, and reading only those tokens of its prefix that are `kept` (tokens,).
    """
    prefix_length = len(ids) - len(targets)
    logits = torch.zeros(len(targets), VOCAB, dtype=torch.float64)
    gradients = [torch.zeros_like(p) for p in model.parameters()]
    for document in segments.unique():
        places = ((segments == document) & (True if valid is None else valid)).nonzero().flatten()
        prefix, latents = places[places < prefix_length], places[places >= prefix_length] - prefix_length
        if len(latents) == 0:
            continue
        keep = None if kept is None else kept[prefix].nonzero().T
        out = with_gradients(model, ids[places][None], len(prefix), targets[latents][None], prefix_keep=keep)
        logits[latents] = out[0][0]
        gradients = [a + b for a, b in zip(gradients, out[1], strict=True)]
    return logits, gradients


def assert_equals_alone(model, ids, segments, num_latents, *, valid=None, keep=None, backend="auto"):
    prefix_length = ids.shape[1] - num_latents
    targets = tokens(len(ids), num_latents, seed=1)
    latent_valid = torch.ones_like(targets, dtype=torch.bool) if valid is None else valid[:, prefix_length:]
    targets = targets.masked_fill(~latent_valid, -100)
    use_backend(backend)
    packed = with_gradients(model, ids, prefix_length, targets, segments=segments, key_valid=valid, prefix_keep=keep)
    use_backend("reference")
    expected = []
    for row in range(len(ids)):
        masks = {} if valid is None else {"valid": valid[row]}
        if keep is not None:
            masks["kept"] = torch.zeros(prefix_length, dtype=torch.bool).scatter(0, keep[row], True)
        expected.append(alone(model, ids[row], segments[row], targets[row], **masks))
    logits, gradients = zip(*expected, strict=True)
    torch.testing.assert_close(packed[0][latent_valid], torch.stack(logits)[latent_valid], rtol=1e-10, atol=1e-10)
    for actual, *rows in zip(packed[1], *gradients, strict=True):
        torch.testing.assert_close(actual, sum(rows), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("packing", PACKINGS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_documents_in_one_window_equal_documents_alone(backend, packing, preset):
    assert_equals_alone(build(preset), tokens(2, CONTEXT), pack(*packing), LATENTS, backend=backend)


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8).filter(lambda lengths: sum(lengths) <= CONTEXT),
    latents=st.integers(1, LATENTS),
    padding=st.integers(0, CONTEXT),
    dropout=st.sampled_from([0.0, 0.3, 0.8]),
    preset=st.sampled_from(PRESETS),
    backend=st.sampled_from(BACKENDS),
)
def test_any_packing_split_left_padding_and_prefix_dropout(lengths, latents, padding, dropout, preset, backend):
    padding = min(padding, CONTEXT - sum(lengths))
    length = padding + sum(lengths)
    latents = min(latents, length)
    segments = pack([padding + lengths[0], *lengths[1:]])
    valid = (torch.arange(length) >= padding)[None] if padding else None
    keep = draw_prefix_keep(0, torch.tensor([length]), length - latents, dropout)
    assert_equals_alone(build(preset), tokens(1, length), segments, latents, valid=valid, keep=keep, backend=backend)


@pytest.mark.parametrize("backend", ["auto", "sdpa", "reference"])
@pytest.mark.parametrize("padded", [[0, 1, 2], [6, 9, 10], [PREFIX - 1, PREFIX], [0, 8, 19], [CONTEXT - 1]], ids=str)
def test_padding_anywhere_belongs_to_no_document(padded, backend):
    valid = torch.ones(2, CONTEXT, dtype=torch.bool)
    valid[:, padded] = False
    segments = pack([5, 12, 7], [20, 4])
    assert_equals_alone(build(), tokens(2, CONTEXT), segments, LATENTS, valid=valid, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("lengths", [[16, 8], [5, 13, 6], [3, 14, 2, 5]], ids=str)
def test_a_token_reaches_later_latents_of_its_document_and_not_one_bit_of_others(lengths, dropout, backend):
    model, ids, segments = build().float(), tokens(1, CONTEXT), pack(lengths)
    keep = draw_prefix_keep(0, torch.tensor([3]), PREFIX, dropout)
    read = set(range(CONTEXT) if keep is None else [*keep[0].tolist(), *range(PREFIX, CONTEXT)])
    use_backend(backend)
    logits = model(ids, PREFIX, segments=segments, prefix_keep=keep).logits
    for changed in range(CONTEXT):
        other = ids.clone()
        other[0, changed] = ids[0, changed] % (VOCAB - 1) + 1
        moved = (model(other, PREFIX, segments=segments, prefix_keep=keep).logits != logits).any(-1)[0]
        latents = range(PREFIX, CONTEXT)
        same_document = [segments[0, latent] == segments[0, changed] and latent >= changed for latent in latents]
        assert moved.tolist() == [changed in read and same for same in same_document]


def test_one_document_without_padding_is_the_plain_window():
    model, ids = build(), tokens(2, CONTEXT)
    plain = model(ids, PREFIX).logits
    assert model(ids, PREFIX, segments=torch.zeros_like(ids)).logits.equal(plain)


@pytest.mark.parametrize("mode", ["full", "offload"])
def test_activation_checkpointing_changes_no_gradient(mode):
    ids, targets, segments = tokens(2, CONTEXT), tokens(2, LATENTS, seed=1), pack([10, 14], [19, 5])
    gradients = []
    for checkpointing in ("none", mode):
        model = build().train()
        model.activation_checkpointing = checkpointing
        gradients.append(with_gradients(model, ids, PREFIX, targets, segments=segments)[1])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=0, atol=0)


@pytest.mark.parametrize("option", ["segments", "prefix_keep"])
def test_a_cache_takes_whole_rows_only(option):
    model, ids = build(), tokens(1, CONTEXT)
    value = torch.zeros(1, CONTEXT, dtype=torch.long)
    with pytest.raises(ValueError, match="a cache takes neither"):
        model(ids, PREFIX, cache=PerceiverARCache(model.config), **{option: value})


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["flash", "sdpa"])
def test_documents_in_one_window_equal_documents_alone_on_cuda(backend):
    model, ids, segments = build().bfloat16().cuda(), tokens(2, CONTEXT).cuda(), pack([10, 14], [19, 5]).cuda()
    use_backend(backend)
    packed = model(ids, PREFIX, segments=segments).logits
    use_backend("reference")
    torch.testing.assert_close(packed, model(ids, PREFIX, segments=segments).logits, rtol=0, atol=3e-2)
    for row, border in enumerate((10, 19)):
        last = model(ids[row : row + 1, border:], max(PREFIX - border, 0)).logits[0]
        torch.testing.assert_close(packed[row, -len(last) :], last, rtol=0, atol=3e-2)
