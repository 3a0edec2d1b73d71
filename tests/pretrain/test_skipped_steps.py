"""A skipped step leaves no trace, at every ZeRO stage and on every rank, whatever it was skipped for."""

import json
import math
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("skip_worker.py")
CASES = ["fp32-zero0", "fp32-zero1", "fp32-zero2", "fp32-zero3", "bf16-zero1", "bf16-zero2", "bf16-zero3"]
SPOILT = {
    "embedding": "loss not finite",
    "layer": "loss not finite",
    "gradient": "gradient norm not finite",
    "loss": "gradient norm not finite",
    "reported loss": "loss not finite",
}
FIRST, LAST = 16, 23
"""Samples of the step that is skipped."""


@pytest.fixture(scope="module")
def of_ranks(start_ranks, finish_ranks, tmp_path_factory):
    """What every rank of a run of one and of a run of two saw."""
    return run_workers(tmp_path_factory.mktemp("skip"), start_ranks, finish_ranks)


def run_workers(folder, start_ranks, finish_ranks, *options):
    started = {ranks: start_ranks([WORKER, folder / f"{ranks}", *options], ranks) for ranks in (1, 2)}
    for processes in started.values():
        finish_ranks(processes, timeout=600)
    return {n: [json.loads((folder / f"{n}-{rank}.json").read_text()) for rank in range(n)] for n in started}


@pytest.fixture(params=[f"{ranks}-ranks-{case}" for ranks in (1, 2) for case in CASES])
def result(request, of_ranks):
    ranks, _, case = request.param.split("-", 2)
    return of_ranks[int(ranks)][0][case]


def test_ranks_see_and_decide_the_same(of_ranks):
    first, second = of_ranks[2]
    assert json.dumps(first) == json.dumps(second)


def test_refused_step_leaves_no_trace(result):
    assert result["refused"]["problem"] == "not wanted"
    assert math.isfinite(result["refused"]["loss"] + result["refused"]["grad_norm"])
    assert not result["refused"]["changed"]
    assert result["adam_step"] == 2
    # Nor in what is not read back here: accumulated gradients, weights in bf16.
    assert not result["differs"]
    expected = [(step["loss"], step["grad_norm"]) for step in result["undisturbed"][2:]]
    assert [(step["loss"], step["grad_norm"]) for step in result["next"]] == expected


@pytest.mark.parametrize("place", SPOILT)
def test_not_finite_on_one_rank_leaves_no_trace(result, place):
    assert result[place]["problem"] == SPOILT[place]
    assert not result[place]["changed"]


@pytest.mark.slow
def test_offloaded_optimizer_leaves_no_trace(tmp_path, start_ranks, finish_ranks):
    for ranks in run_workers(tmp_path, start_ranks, finish_ranks, "offload").values():
        assert len(ranks[0]) == 6
        for result in ranks[0].values():
            expected = [(step["loss"], step["grad_norm"]) for step in result["undisturbed"][2:]]
            assert [(step["loss"], step["grad_norm"]) for step in result["next"]] == expected
            assert not result["differs"]
            assert all(result[place]["problem"] and not result[place]["changed"] for place in ("refused", *SPOILT))


def test_record_names_the_worst_samples(of_ranks):
    for case in of_ranks[2][0].values():
        refused = case["refused"]["record"]
        assert (refused["kind"], refused["step"], refused["samples"]) == ("skipped", 3, [FIRST, LAST])
        losses = [row["loss"] for row in refused["worst_samples"]]
        assert losses == sorted(losses, reverse=True)
        assert {row["sample"] for row in refused["worst_samples"]} == set(range(FIRST, LAST + 1))
        assert min(losses) < refused["loss"] < max(losses)

        spoilt = case["embedding"]["record"]
        assert spoilt["loss"] is None
        rows = [(row["sample"] > FIRST + 3, row["loss"] is None) for row in spoilt["worst_samples"]]
        assert rows == [(True, True)] * 4 + [(False, False)] * 4  # the second rank's come first


def test_gradient_norms_make_up_that_of_all(result):
    norms = result["gradient_norms"].values()
    assert all(norm > 0 for norm in norms)
    assert math.hypot(*norms) == pytest.approx(result["next"][-1]["grad_norm"], rel=1e-4)
