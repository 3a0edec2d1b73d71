"""What only images need: the batch norm of convolved inputs in mixed precision."""

import pytest
import torch
from torch import nn

from perceiver_ar.models.image import BatchNorm


@pytest.mark.parametrize("statistics", [torch.float32, torch.bfloat16])
def test_statistics_move_whatever_the_weights_and_they_are_in(statistics: torch.dtype) -> None:
    """DeepSpeed casts weights and leaves statistics, `model.to` casts both: torch's own takes either none or all."""
    torch.manual_seed(0)
    oracle, ours = nn.BatchNorm2d(3), BatchNorm(3).bfloat16()
    ours.running_mean.data, ours.running_var.data = (x.to(statistics) for x in (ours.running_mean, ours.running_var))
    for step in range(5):
        features = (torch.randn(4, 3, 6, 6) * 3 + step).bfloat16()
        expected, found = oracle(features.float()), ours(features)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-2)
        found.sum().backward()
    torch.testing.assert_close(ours.running_mean.float(), oracle.running_mean, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(ours.running_var.float(), oracle.running_var, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(ours.eval()(features).float(), oracle.eval()(features.float()), rtol=3e-2, atol=3e-2)
