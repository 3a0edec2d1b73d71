import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from perceiver_ar.blocks.attend import attend, describe_backend, use_backend
from perceiver_ar.blocks.merge import merge_partial
from perceiver_ar.blocks.segments import Segments

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SHAPES = [  # (queries, keys)
    (16, 16),
    (8, 24),
    (1, 40),
    (3, 700),
    (33, 129),
]


@pytest.fixture(autouse=True)
def _automatic_backend():
    yield
    use_backend("auto")


def draw(queries, keys, *, dtype=torch.float32, device="cpu", batch=2, heads=3, channels=16, v_channels=None, seed=0):
    """q, k, v as a projection yields them: (B, L, H, D) in memory, (B, H, L, D) in shape."""
    generator = torch.Generator().manual_seed(seed)

    def one(length, width):
        x = torch.randn(batch, length, heads, width, generator=generator, dtype=torch.float64)
        return x.to(device, dtype).transpose(1, 2).requires_grad_()

    return one(queries, channels), one(keys, channels), one(keys, v_channels or channels)


def with_gradients(q, k, v, grad, grad_lse=None, **options):
    """Output, log-sum-exp and the gradients in q, k, v."""
    out, lse = attend(q, k, v, return_lse=True, **options)
    losses, grads = [out], [grad]
    if grad_lse is not None:
        losses, grads = [out, lse], [grad, grad_lse]
    return out, lse, *torch.autograd.grad(losses, (q, k, v), grads)


def assert_equals_oracle(q, k, v, *, backend, lse_gradient=False, **options):
    """Compare with the reference in float64 from the same inputs, up to the rounding of the dtype of `q`."""
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(*q.shape[:3], v.shape[-1], generator=generator).to(q.device, q.dtype)
    grad_lse = torch.randn(q.shape[:3], generator=generator).to(q.device) if lse_gradient else None
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    exact_grad_lse = None if grad_lse is None else grad_lse.double()
    expected = with_gradients(*exact, grad.double(), exact_grad_lse, backend="reference", **options)
    if grad_lse is not None:
        grad_lse = grad_lse.to(torch.promote_types(q.dtype, torch.float32))
    actual = with_gradients(q, k, v, grad, grad_lse, backend=backend, **options)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}[q.dtype]
    for name, a, e in zip(("out", "lse", "q", "k", "v"), actual, expected, strict=True):
        assert a.dtype == (torch.promote_types(q.dtype, torch.float32) if name == "lse" else q.dtype)
        torch.testing.assert_close(
            a.double(), e, rtol=0, atol=tolerance * e[e.isfinite()].abs().max().clamp_min(1).item(), msg=name
        )
    torch.testing.assert_close(attend(q, k, v, backend=backend, **options), actual[0])


def by_hand(q, k, v, allowed):
    """Attention of one query at a time over a list of keys, in plain loops."""
    out, lse = torch.zeros(*q.shape[:3], v.shape[-1], dtype=q.dtype), torch.full(q.shape[:3], -torch.inf, dtype=q.dtype)
    for b, h, i in itertools.product(*map(range, q.shape[:3])):
        keys = allowed[b, i].nonzero().flatten()
        if len(keys):
            scores = k[b, h, keys] @ q[b, h, i] / q.shape[-1] ** 0.5
            out[b, h, i] = scores.softmax(0) @ v[b, h, keys]
            lse[b, h, i] = scores.logsumexp(0)
    return out, lse


def random_masks(queries, keys, batch=2, device="cpu"):
    """Key padding that leaves some queries without a key, and segments."""
    generator = torch.Generator().manual_seed(3)
    key_valid = torch.rand(batch, keys, generator=generator) < 0.6
    key_valid[0, : keys - queries + 1] = False  # causal query 0 of sequence 0 sees nothing
    key_valid[2:] = False
    segments = Segments(
        torch.randint(0, 3, (batch, queries), generator=generator).to(device),
        torch.randint(0, 3, (batch, keys), generator=generator).to(device),
    )
    return key_valid.to(device), segments


def test_reference_follows_its_definition():
    q, k, v = (x.detach() for x in draw(5, 9, dtype=torch.float64, v_channels=6))
    key_valid, segments = random_masks(5, 9)
    allowed = torch.zeros(2, 5, 9, dtype=torch.bool)
    for b, i, j in itertools.product(range(2), range(5), range(9)):
        allowed[b, i, j] = j <= 9 - 5 + i and key_valid[b, j] and segments.queries[b, i] == segments.keys[b, j]
    assert not allowed.any(-1).all()
    actual = attend(q, k, v, causal=True, key_valid=key_valid, segments=segments, return_lse=True, backend="reference")
    for a, e in zip(actual, by_hand(q, k, v, allowed), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("queries", "keys"), SHAPES)
@pytest.mark.parametrize("backend", ["flash", "sdpa", "reference"])
def test_backends_equal_the_oracle(backend, queries, keys, causal, dtype, device):
    if backend == "flash" and device == "cuda" and dtype.itemsize > 2:
        pytest.skip("CUDA flash kernels are bf16 and fp16")
    q, k, v = draw(queries, keys, dtype=dtype, device=device)
    assert_equals_oracle(q, k, v, causal=causal, backend=backend, lse_gradient=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("mask", ["key_valid", "segments", "both"])
@pytest.mark.parametrize(("queries", "keys"), [(16, 16), (8, 24), (24, 8)])
@pytest.mark.parametrize("backend", ["auto", "sdpa", "reference"])
def test_masked_backends_equal_the_oracle(backend, queries, keys, mask, causal, dtype, device):
    q, k, v = draw(queries, keys, dtype=dtype, device=device, batch=3)
    key_valid, segments = random_masks(queries, keys, batch=3, device=device)
    masks = {"key_valid": {"key_valid": key_valid}, "segments": {"segments": segments}}
    options = masks.get(mask, masks["key_valid"] | masks["segments"])
    assert_equals_oracle(q, k, v, causal=causal, backend=backend, lse_gradient=True, **options)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("backend", ["auto", "sdpa", "reference"])
def test_each_query_may_have_a_mask_of_its_own(backend, causal, rows):
    q, k, v = draw(8, 24, dtype=torch.float64, batch=3)
    key_valid = torch.rand(rows, 8, 24, generator=torch.Generator().manual_seed(0)) < 0.6
    key_valid[0, 2] = False
    allowed = key_valid & torch.ones(8, 24, dtype=torch.bool).tril(16) if causal else key_valid
    out, lse = attend(q, k, v, causal=causal, key_valid=key_valid, return_lse=True, backend=backend)
    for actual, expected in zip((out, lse), by_hand(q, k, v, allowed.expand(3, -1, -1)), strict=True):
        torch.testing.assert_close(actual.detach(), expected.detach())


def documents(*rows, device="cpu"):
    """Document numbers (batch, keys) of rows packed from documents of these lengths."""
    numbers = [torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)) for lengths in rows]
    return torch.stack(numbers).to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "rows",
    [
        ([40], [40], [40]),
        ([24, 16], [25, 15], [23, 17]),  # borders at and around the first query
        ([7, 20, 13], [1, 1, 38], [38, 1, 1]),
        ([1] * 40, [30, 10], [2, 37, 1]),
    ],
)
@pytest.mark.parametrize("queries", [1, 16, 40])
@pytest.mark.parametrize("backend", ["flash", "sdpa", "reference"])
def test_documents_end_to_end_equal_the_oracle(backend, queries, rows, causal, dtype, device):
    if backend == "flash" and device == "cuda" and dtype.itemsize > 2:
        pytest.skip("CUDA flash kernels are bf16 and fp16")
    q, k, v = draw(queries, 40, dtype=dtype, device=device, batch=3)
    segments = Segments.of_window(documents(*rows, device=device), queries)
    assert_equals_oracle(q, k, v, causal=causal, backend=backend, lse_gradient=True, segments=segments)


@pytest.mark.gpu
def test_dropout_within_documents_on_cuda():
    torch.manual_seed(0)
    q, k, _ = draw(64, 64, dtype=torch.bfloat16, device="cuda", channels=64, batch=1)
    identity = torch.eye(64, dtype=q.dtype, device="cuda").expand(1, 3, 64, 64)
    segments = Segments.of_window(documents([40, 24], device="cuda"), 64)
    weights = attend(q, k, identity, causal=False, segments=segments)
    dropped = attend(q, k, identity, causal=False, segments=segments, dropout=0.25, backend="flash")
    inside = weights != 0
    assert ((dropped[inside] == 0).float().mean() - 0.25).abs() < 0.05
    assert (dropped[~inside] == 0).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["auto", "sdpa", "reference"])
def test_query_without_keys_yields_zeros_and_no_gradient(backend, device):
    q, k, v = draw(4, 10, dtype=torch.float32, device=device)
    key_valid = torch.ones(2, 10, dtype=torch.bool, device=device)
    key_valid[0] = False
    out, lse, *grads = with_gradients(
        q, k, v, torch.ones_like(q), torch.ones_like(q[..., 0]), causal=True, key_valid=key_valid, backend=backend
    )
    assert (out[0] == 0).all() and (lse[0] == -torch.inf).all()
    assert lse[1].isfinite().all()
    for grad in grads:
        assert (grad[0] == 0).all()
        assert grad[1].isfinite().all() and (grad[1] != 0).any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["auto", "sdpa", "reference"])
@pytest.mark.parametrize(
    ("queries", "keys", "channels", "v_channels"), [(6, 20, 16, 24), (20, 6, 16, 16), (6, 20, 5, 5)]
)
def test_odd_shapes_equal_the_oracle(queries, keys, channels, v_channels, backend, device):
    q, k, v = draw(queries, keys, device=device, channels=channels, v_channels=v_channels)
    assert_equals_oracle(q, k, v, causal=True, backend=backend, lse_gradient=True)


@pytest.mark.parametrize("backend", ["auto", "sdpa", "reference"])
def test_no_keys_at_all(backend):
    q, k, v = draw(4, 0)
    out, lse = attend(q, k, v, causal=False, return_lse=True, backend=backend)
    assert (out == 0).all() and out.shape == q.shape and (lse == -torch.inf).all() and lse.shape == q.shape[:3]


@pytest.mark.parametrize("backend", ["flash", "sdpa", "reference"])
def test_any_memory_layout(backend):
    q, k, v = (x.detach() for x in draw(8, 24))
    expected = attend(q, k, v, causal=True, backend=backend)
    channels_first = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (q, k, v)]
    torch.testing.assert_close(attend(*channels_first, causal=True, backend=backend), expected)
    shared = q[:1].expand(2, -1, -1, -1)
    torch.testing.assert_close(
        attend(shared, k, v, causal=True, backend=backend), attend(shared.clone(), k, v, causal=True, backend=backend)
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["auto", "sdpa", "reference"])
def test_dropout_drops_weights_and_keeps_the_mean(backend, device):
    torch.manual_seed(0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    q, k, _ = draw(64, 64, dtype=dtype, device=device, channels=64)
    identity = torch.eye(64, dtype=dtype, device=device).expand(2, 3, 64, 64)
    weights = attend(q, k, identity, causal=False, backend=backend)
    dropped = attend(q, k, identity, causal=False, dropout=0.25, backend=backend)
    assert ((dropped == 0).float().mean() - 0.25).abs() < 0.02
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], weights[kept] / 0.75, rtol=2e-2, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    queries=st.integers(1, 9),
    prefix=st.integers(0, 20),
    causal=st.booleans(),
    backend=st.sampled_from(["auto", "sdpa", "reference"]),
)
def test_merge_of_any_split_equals_the_whole(data, queries, prefix, causal, backend):
    keys = queries + prefix
    split = data.draw(st.integers(0, prefix if causal else keys), label="split")
    q, k, v = draw(queries, keys, dtype=torch.float64, seed=queries)
    grad, grad_lse = torch.randn(q.shape, dtype=q.dtype), torch.randn(q.shape[:3], dtype=q.dtype)
    first = attend(q, k[:, :, :split], v[:, :, :split], causal=False, return_lse=True, backend=backend)
    second = attend(q, k[:, :, split:], v[:, :, split:], causal=causal, return_lse=True, backend=backend)
    merged = merge_partial(*first, *second)
    whole = attend(q, k, v, causal=causal, return_lse=True, backend="reference")
    for m, w in zip(merged, whole, strict=True):
        torch.testing.assert_close(m, w, rtol=1e-10, atol=1e-10)
    grads, expected = (torch.autograd.grad(pair, (q, k, v), (grad, grad_lse)) for pair in (merged, whole))
    for g, e in zip(grads, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-9, atol=1e-9)


def test_merge_with_empty_sides():
    out = [torch.randn(3, 5, dtype=torch.float64) for _ in range(2)]
    lse = [torch.randn(3, dtype=torch.float64) for _ in range(2)]
    for side, row in ((0, 0), (1, 1), (0, 2), (1, 2)):  # row 2 is empty on both sides
        out[side][row], lse[side][row] = 0, -torch.inf
    arguments = [x.requires_grad_() for x in (out[0], lse[0], out[1], lse[1])]
    merged, merged_lse = merge_partial(*arguments)
    torch.testing.assert_close(merged, torch.stack([out[1][0], out[0][1], torch.zeros(5, dtype=torch.float64)]))
    torch.testing.assert_close(merged_lse, torch.stack([lse[1][0], lse[0][1], torch.tensor(-torch.inf).double()]))
    grads = torch.autograd.grad((merged, merged_lse), arguments, (torch.ones_like(merged), torch.ones_like(merged_lse)))
    assert all(grad.isfinite().all() for grad in grads)


def test_bf16_split_costs_little_precision():
    """Each part's output is rounded before the merge: about a quarter more error than one kernel over all keys."""
    q, k, v = (x.detach() for x in draw(64, 512, dtype=torch.bfloat16, channels=64))
    exact = attend(q.double(), k.double(), v.double(), causal=True, backend="reference")
    split, whole = ((attend(q, k, v, causal=True, backend=b) - exact).norm() for b in ("flash", "sdpa"))
    assert split < 1.4 * whole


def test_override_that_cannot_serve_the_call_says_why():
    q, k, v = draw(4, 8)
    with pytest.raises(ValueError, match="key padding"):
        attend(q, k, v, causal=True, key_valid=torch.ones(2, 8, dtype=torch.bool), backend="flash")
    with pytest.raises(ValueError, match="segments that do not lie end to end"):
        attend(q, k, v, causal=True, segments=random_masks(4, 8)[1], backend="flash")
    with pytest.raises(ValueError, match="dropout on the CPU"):
        attend(q, k, v, causal=True, dropout=0.1, backend="flash")
    with pytest.raises(ValueError, match="16 channels and values 8"):
        attend(q, k, v[..., :8], causal=True, backend="flash")
    with pytest.raises(ValueError, match="8 queries and 4 keys"):
        attend(k, q, q, causal=True, backend="flash")
    with pytest.raises(ValueError, match="unknown attention backend 'fast'"):
        attend(q, k, v, causal=True, backend="fast")
    with pytest.raises(ValueError, match="unknown attention backend 'fast'"):
        use_backend("fast")


def test_process_wide_override():
    q, k, v = draw(4, 8)
    use_backend("flash")
    with pytest.raises(ValueError, match="dropout"):
        attend(q, k, v, causal=True, dropout=0.1)
    attend(q, k, v, causal=True, dropout=0.1, backend="auto")
    use_backend("reference")
    assert describe_backend("cpu", torch.float32, 64) == "reference (as set)"
    assert torch.equal(attend(q, k, v, causal=True), attend(q, k, v, causal=True, backend="reference"))


def test_automatic_choice_is_described():
    assert describe_backend("cpu", torch.bfloat16, 64) == "flash (aten CPU kernels, prefix/latent split)"
    assert describe_backend("meta", torch.bfloat16, 64) == "sdpa (no flash: no kernel for device meta)"


@pytest.mark.gpu
def test_automatic_choice_on_cuda():
    assert describe_backend("cuda", torch.bfloat16, 64).startswith("flash (")
    assert describe_backend("cuda", torch.float32, 64) == "sdpa (no flash: no CUDA kernel for torch.float32)"
    q, k, v = draw(128, 1024, dtype=torch.bfloat16, device="cuda", channels=64)
    assert_equals_oracle(q, k, v, causal=True, backend="auto", lse_gradient=True)
