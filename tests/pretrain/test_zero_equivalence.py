"""Every ZeRO stage, number of ranks and accumulation trains like plain PyTorch on the whole batch."""

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from perceiver_ar.models.perceiver_ar import PerceiverAR, draw_prefix_keep

WORKER = Path(__file__).with_name("zero_worker.py")
spec = importlib.util.spec_from_file_location("zero_worker", WORKER)
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)

CASES = [
    pytest.param(ranks, case, id=f"{ranks}-ranks-{case[0]}-zero{case[1]}-accumulation{case[2]}")
    for ranks in (1, 2)
    for case in worker.CASES
]


@pytest.fixture(scope="module")
def oracle():
    """Losses, gradient norms and final weights of a plain loop over whole global batches in fp32."""
    torch.manual_seed(worker.SEED)
    model = PerceiverAR(worker.MODEL)
    decayed = [p for name, p in model.named_parameters() if p.ndim >= 2 and "positions" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim < 2 or "positions" in name]
    adam = torch.optim.AdamW(
        [{"params": decayed}, {"params": others, "weight_decay": 0.0}], **worker.OPTIMIZER, foreach=False
    )
    prefix = worker.MODEL.max_seq_len - worker.MODEL.max_latents
    losses, norms = [], []
    for step in range(worker.STEPS):
        batch = worker.global_batch(step)
        keep = draw_prefix_keep(worker.SEED, batch.indices, prefix, worker.MODEL.prefix_dropout)
        inputs = {"key_valid": batch.key_valid, "segments": batch.segments, "prefix_keep": keep}
        logits = model(batch.input_ids, prefix, **inputs).logits
        nll = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
        z = logits.logsumexp(-1)[batch.targets != -100].square().mean()
        adam.zero_grad()
        (nll + worker.MODEL.z_loss * z).backward()
        norms.append(torch.stack([p.grad.double().norm() for p in model.parameters()]).norm().item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), worker.CLIP)
        for group in adam.param_groups:
            group["lr"] = worker.learning_rate(step)
        adam.step()
        losses.append(nll.item())
    return {"losses": losses, "norms": norms, "weights": dict(model.named_parameters())}


@pytest.fixture(scope="module")
def results(start_ranks, finish_ranks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zero")
    started = {ranks: start_ranks([WORKER, folder / f"{ranks}.pt"], ranks) for ranks in (1, 2)}
    for processes in started.values():
        finish_ranks(processes)
    return {ranks: torch.load(folder / f"{ranks}.pt") for ranks in started}


@pytest.mark.parametrize(("ranks", "case"), CASES)
def test_trains_like_plain_pytorch(oracle, results, ranks, case):
    result = results[ranks][case]
    # bf16 keeps 8 bits of each weight and activation.
    tolerance = {"fp32": 1e-5, "bf16": 2e-2}[case[0]]
    assert result["losses"] == pytest.approx(oracle["losses"], abs=tolerance)
    assert result["norms"] == pytest.approx(oracle["norms"], abs=tolerance if case[0] == "fp32" else 0.1)
    assert max(oracle["norms"]) > worker.CLIP > min(oracle["norms"])
    if case[0] == "fp32":
        assert result["weights"].keys() == oracle["weights"].keys()
        for name, weight in result["weights"].items():
            torch.testing.assert_close(weight, oracle["weights"][name].detach(), atol=2e-4, rtol=0)


@pytest.mark.parametrize(("ranks", "case"), CASES)
def test_step_that_is_not_finite_changes_nothing(results, ranks, case):
    result = results[ranks][case]
    assert not result["nan_applied"]
    assert not result["nan_changed"]
    assert result["adam_step"] == worker.STEPS
