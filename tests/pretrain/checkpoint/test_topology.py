"""A checkpoint holds the same weights and moments for every number of ranks and every ZeRO stage, to the bit."""

from itertools import product
from pathlib import Path

import pytest

from tests.pretrain.checkpoint.topology_worker import LOADED, SAVED

WORKER = Path(__file__).with_name("topology_worker.py")


@pytest.fixture(scope="module")
def output(tmp_path_factory, start_ranks, finish_ranks):
    folder = tmp_path_factory.mktemp("topology")
    printed = ""
    for phase in ("save", "load"):
        started = [start_ranks([WORKER, phase, folder], ranks) for ranks in SAVED]
        printed += "".join(finish_ranks(processes) for processes in started)
    return printed


@pytest.mark.parametrize(("saved", "loaded"), list(product([(r, *case) for r in SAVED for case in SAVED[r]], SAVED)))
def test_loads_elsewhere(output, saved, loaded):
    name = "-".join(map(str, saved))
    for precision, stage in LOADED:
        assert f"{name} -> {loaded}-{precision}-{stage}\n" in output
