"""What the engine trains, what it leaves alone, and that it keeps both: beside plain PyTorch and LAMB's own formula."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from pretrain.config import RunConfig
from tests.pretrain.kept_worker import CASES, OPTIMIZER, ROWS, STEPS, batch_of, make_objective

WORKER = Path(__file__).with_name("kept_worker.py")
RANKS = 2


def lamb_step(weights: list[Tensor], moments: list[tuple[Tensor, Tensor]]) -> None:
    """Algorithm 2 of You et al. 2019 without bias correction; decay on the matrix only."""
    (b1, b2), lr = OPTIMIZER["betas"], OPTIMIZER["lr"]
    for weight, (m, v) in zip(weights, moments, strict=True):
        gradient = weight.grad
        m.mul_(b1).add_((1 - b1) * gradient)
        v.mul_(b2).add_((1 - b2) * gradient**2)
        decay = OPTIMIZER["weight_decay"] if weight.dim() == 2 else 0.0
        update = m / (v.sqrt() + OPTIMIZER["eps"]) + decay * weight.data
        norms = weight.data.norm(), update.norm()
        trust = norms[0] / norms[1] if norms[0] > 0 and norms[1] > 0 else 1.0
        weight.data -= lr * trust * update


def plainly(kind: str) -> dict[str, Tensor]:
    """The weights and statistics that one process comes to without DeepSpeed."""
    objective = make_objective()
    trained = [p for p in objective.parameters() if p.requires_grad]
    matrices, others = ([p for p in trained if (p.dim() == 2) == wanted] for wanted in (True, False))
    groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, **OPTIMIZER)
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in trained]
    for step in range(STEPS):
        adam.zero_grad()
        (objective(batch_of(step, 0, RANKS)).loss_sum * RANKS / ROWS).backward()
        if kind == "lamb":
            lamb_step(trained, moments)
        else:
            adam.step()
    return {name: tensor for name, tensor in objective.model.state_dict().items() if tensor.is_floating_point()}


def test_everything_is_kept_and_only_what_is_to_learn_has_changed(start_ranks, finish_ranks, tmp_path: Path) -> None:
    finish_ranks(start_ranks([WORKER, tmp_path / "results.pt"], RANKS))
    results = torch.load(tmp_path / "results.pt")
    assert results.keys() == set(CASES)
    for (kind, precision, _), found in results.items():
        check(found, plainly(kind), rough=precision == "bf16")


def check(found: dict[tuple[str, str], Tensor], expected: dict[str, Tensor], *, rough: bool) -> None:
    """What the ranks hold together, by name and kind, beside the weights and statistics that are expected."""
    assert {name for name, kind in found if kind == "weight"} == expected.keys()
    assert {name for name, kind in found if kind == "exp_avg"} == {
        name for name in expected if not name.startswith(("frozen", "statistics.running"))
    }
    for name, tensor in expected.items():
        if name.startswith("frozen"):
            assert torch.equal(found[name, "weight"], tensor)  # to the last bit, in bf16 too
        else:
            rtol, atol = (0.2, 0.05) if rough else (1e-4, 1e-5)
            torch.testing.assert_close(found[name, "weight"], tensor, rtol=rtol, atol=atol)


@pytest.mark.parametrize("train", [{"precision": "bf16"}, {"precision": "fp32", "zero": {"stage": 1}}])
def test_lamb_needs_whole_tensors(train: dict) -> None:
    sizes = {"steps": 1, "global_batch": 1, "micro_batch": 1}
    with pytest.raises(ValidationError, match=r"kind lamb needs train\.zero\.stage 0 and train\.precision fp32"):
        RunConfig(task="causal_lm", run={"dir": "unused"}, train=sizes | train, optimizer={"kind": "lamb"})
