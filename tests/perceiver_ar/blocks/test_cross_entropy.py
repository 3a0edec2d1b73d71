import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from perceiver_ar.blocks.cross_entropy import chunked_cross_entropy

TOKENS, CHANNELS, VOCABULARY = 37, 8, 53
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def draw(*, bias=True, dtype=torch.float64, device="cpu", ignored=0.3):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()

    targets = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    targets[torch.rand(TOKENS, generator=generator) < ignored] = -100
    inputs = normal(TOKENS, CHANNELS), normal(VOCABULARY, CHANNELS), normal(VOCABULARY) if bias else None
    return *inputs, targets.to(device)


def plain(hidden, weight, bias, targets, z_loss):
    """Total, nll and z with all logits at once."""
    logits = F.linear(hidden, weight, bias)
    nll = F.cross_entropy(logits, targets, reduction="none", ignore_index=-100)
    z = (logits.logsumexp(-1).square() * (targets != -100)).sum()
    return nll.sum() + z_loss * z, nll, z


def gradients(total, *inputs):
    return torch.autograd.grad(total / 7, [x for x in inputs if x is not None])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk_tokens", [1, 5, TOKENS, 1000, None])
def test_equals_the_unchunked_loss(chunk_tokens, bias, z_loss, device):
    *inputs, targets = draw(bias=bias, device=device)
    loss = chunked_cross_entropy(*inputs, targets, z_loss=z_loss, chunk_tokens=chunk_tokens)
    total, nll, z = plain(*inputs, targets, z_loss)
    torch.testing.assert_close((loss.total, loss.nll, loss.z), (total, nll.detach(), z.detach()))
    assert not loss.nll.requires_grad and not loss.z.requires_grad
    torch.testing.assert_close(gradients(loss.total, *inputs), gradients(total, *inputs), rtol=1e-10, atol=1e-12)


def test_gradients_are_right_by_finite_differences():
    hidden, weight, bias, targets = draw()
    assert torch.autograd.gradcheck(
        lambda *inputs: chunked_cross_entropy(*inputs, targets, z_loss=0.1, chunk_tokens=10).total,
        (hidden, weight, bias),
    )


def test_all_ignored():
    *inputs, targets = draw(ignored=1.1)
    loss = chunked_cross_entropy(*inputs, targets, z_loss=0.1, chunk_tokens=10)
    assert loss.total == 0 and loss.z == 0 and (loss.nll == 0).all()
    assert all((grad == 0).all() for grad in gradients(loss.total, *inputs))


def test_huge_logits_stay_finite():
    hidden, weight, bias, targets = draw(dtype=torch.float32)
    inputs = (hidden.detach() * 1e4).requires_grad_(), weight, bias
    loss = chunked_cross_entropy(*inputs, targets, z_loss=0.0, chunk_tokens=10)
    torch.testing.assert_close(loss.total, plain(*inputs, targets, 0.0)[0])
    assert all(grad.isfinite().all() for grad in gradients(loss.total, *inputs))


@pytest.mark.parametrize("device", DEVICES)
def test_bf16_is_close_and_keeps_its_dtypes(device):
    *inputs, targets = draw(dtype=torch.bfloat16, device=device)
    loss = chunked_cross_entropy(*inputs, targets, z_loss=1e-2, chunk_tokens=5)
    assert (loss.total.dtype, loss.nll.dtype, loss.z.dtype) == (torch.float32,) * 3
    exact = [x.detach().double().requires_grad_() for x in inputs]
    total, nll, _ = plain(*exact, targets, 1e-2)
    torch.testing.assert_close(loss.total.double(), total, rtol=1e-2, atol=0)
    torch.testing.assert_close(loss.nll.double(), nll, rtol=2e-2, atol=5e-2)
    for grad, expected in zip(gradients(loss.total, *inputs), gradients(total, *exact), strict=True):
        assert grad.dtype == torch.bfloat16
        torch.testing.assert_close(grad.double(), expected, rtol=0, atol=2e-2 * expected.abs().max().item())


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor any operator made."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.elements = max([self.elements, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))])
        return out


def test_no_tensor_has_the_logits_of_all_tokens():
    *inputs, targets = draw(dtype=torch.bfloat16)
    with LargestTensor() as largest:
        gradients(chunked_cross_entropy(*inputs, targets, z_loss=0.1, chunk_tokens=5).total, *inputs)
    assert largest.elements == max(5, CHANNELS) * VOCABULARY < TOKENS * VOCABULARY
    with LargestTensor() as largest:
        plain(*inputs, targets, 0.1)
    assert largest.elements >= TOKENS * VOCABULARY


def test_without_gradients_nothing_is_kept_or_computed_for_them():
    *inputs, targets = draw()
    with torch.no_grad(), LargestTensor() as largest:
        loss = chunked_cross_entropy(*inputs, targets, z_loss=0.1, chunk_tokens=2)
    assert largest.elements < VOCABULARY * CHANNELS
    torch.testing.assert_close(loss.total, plain(*inputs, targets, 0.1)[0].detach())
    assert not loss.total.requires_grad


@pytest.mark.parametrize("chunk_tokens", [5, None])
def test_what_is_likeliest_is_told_where_no_gradients_are_computed(chunk_tokens):
    hidden, weight, bias, targets = draw()
    likeliest = F.linear(hidden, weight, bias).argmax(-1)
    targets[::2] = likeliest[::2]
    targets[4] = -100
    assert chunked_cross_entropy(hidden, weight, bias, targets, z_loss=0.1).correct is None
    with torch.no_grad():
        loss = chunked_cross_entropy(hidden, weight, bias, targets, z_loss=0.1, chunk_tokens=chunk_tokens)
    assert loss.correct.tolist() == (likeliest == targets).tolist()
    assert TOKENS // 2 <= loss.correct.sum() < TOKENS and not loss.correct[4]
