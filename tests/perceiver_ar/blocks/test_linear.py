import pytest
import torch
import torch.nn.functional as F

from perceiver_ar.blocks.linear import Linear, linear

IN = 512


@pytest.mark.parametrize("shape", [(IN,), (1, 1, IN), (2, 3, IN), (8, 1, IN), (3, 3, IN), (0, IN), (2, 1, 2, IN)])
@pytest.mark.parametrize("out", [512, 262, 257, 7])
@pytest.mark.parametrize("bias", [False, True])
def test_output_and_gradients_are_those_of_a_linear_map(shape: tuple[int, ...], out: int, bias: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(*shape, requires_grad=True), torch.randn(out, IN, requires_grad=True)
    inputs = [x, weight, *([torch.randn(out, requires_grad=True)] if bias else [])]
    ours, expected = linear(*inputs), F.linear(*inputs)
    assert ours.shape == expected.shape
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-5)
    grad = torch.randn_like(expected)
    gradients = (torch.autograd.grad(output, inputs, grad) for output in (ours, expected))
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_are_computed_as_ever(dtype: torch.dtype) -> None:
    x, weight = torch.randn(1, IN, dtype=dtype), torch.randn(512, IN, dtype=dtype)
    assert torch.equal(linear(x, weight), F.linear(x, weight))


def test_inputs_need_not_be_contiguous() -> None:
    torch.manual_seed(0)
    layer, x = Linear(IN, 512), torch.randn(IN, 5).T
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


def test_autocast_decides_the_precision_as_it_does_for_linear_maps() -> None:
    torch.manual_seed(0)
    layer, x = Linear(IN, 512), torch.randn(1, IN)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == F.linear(x, layer.weight, layer.bias).dtype == torch.bfloat16
