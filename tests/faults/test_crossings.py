"""A run goes on on another number of ranks and at another ZeRO stage as if nothing had changed."""

import pytest

from tests.faults.crew import start
from tests.faults.phases import At, get_killed
from tests.faults.runs import records

FIELDS = {"train__steps": 18, "checkpoint__every": 5, "checkpoint__background": False, "train__micro_batch": 1}
KILLED_AT = 7
"""The step of each attempt, counted from where it went on, in which all ranks are killed."""
TOLERANCE = 1e-5
"""Sums over ranks and micro-batches come in another order."""


@pytest.mark.parametrize(
    "legs",
    [
        ((2, 1), (1, 3), (2, 2)),
        *(
            pytest.param(legs, marks=pytest.mark.faults)
            for legs in (
                ((2, 1), (1, 1), (2, 1)),
                ((2, 1), (2, 3), (2, 2)),
                ((1, 1), (1, 3), (1, 2)),
                ((1, 0), (2, 3), (1, 1)),
                ((2, 3), (1, 0), (2, 1)),
                ((2, 2), (2, 0), (2, 3)),
            )
        ),
    ],
)
def test_crossing(tmp_path, write_run, undisturbed, survived, legs):
    """`legs`: (ranks, stage) of each attempt; all but the last are killed after steps 5 and 10."""
    for ranks, stage in legs[:-1]:
        config = write_run(tmp_path / "run", **FIELDS, train__zero={"stage": stage})
        faults = [At("update", get_killed, entry=KILLED_AT)]
        start(config, ranks, faults).expect(*[-9] * ranks)
    ranks, stage = legs[-1]
    config = write_run(tmp_path / "run", **FIELDS, train__zero={"stage": stage})
    output = start(config, ranks).expect(*[0] * ranks)
    assert "from step 10" in output
    ranks, stage = legs[0]
    expected, found = records(undisturbed(ranks, **FIELDS, train__zero={"stage": stage})), records(tmp_path / "run")
    assert [record["loss"] for record in found] == pytest.approx([record["loss"] for record in expected], abs=TOLERANCE)
    for exact in ("kind", "step", "trained_tokens", "batch_hash"):
        assert [record.get(exact) for record in found] == [record.get(exact) for record in expected]
    path = " -> ".join(f"{ranks} x ZeRO {stage}" for ranks, stage in legs)
    survived(f"ranks and stages {path}", f"the same samples, losses within {TOLERANCE:g}")
