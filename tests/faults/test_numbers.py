"""A step whose numbers are not finite, wherever that comes from, is as if it had not been taken."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pretrain.errors import ABORTED
from tests.faults.crew import start
from tests.faults.phases import replace
from tests.faults.runs import records, tensors

FIELDS = {"train__steps": 12, "train__micro_batch": 1, "evaluation__every": 0, "stability__sigmas": None}
BAD_STEP = 6
ACCUMULATION = 2
"""Micro-batches of a rank in a step."""


def with_one(tensor: Tensor, value: float) -> Tensor:
    """`tensor` with its first element times `value`; gradients go the same way back."""
    factors = torch.ones_like(tensor)
    factors.view(-1)[0] = value
    return tensor * factors


PLACES: dict[str, Callable[[nn.Module, Callable[[Any], Any]], object]] = {
    "embedding": lambda task, spoil: task.model.embed.tokens.register_forward_hook(lambda *a: spoil(a[-1])),
    "cross-attention": lambda task, spoil: task.model.cross_attention.register_forward_hook(lambda *a: spoil(a[-1])),
    "last layer": lambda task, spoil: task.model.self_attention[-1].register_forward_hook(lambda *a: spoil(a[-1])),
    "loss to minimise": lambda task, spoil: task.register_forward_hook(
        lambda *a: a[-1]._replace(loss_sum=spoil(a[-1].loss_sum))
    ),
    "loss to report": lambda task, spoil: task.register_forward_hook(
        lambda *a: a[-1]._replace(losses=spoil(a[-1].losses))
    ),
    "gradient of a matrix": lambda task, spoil: task.model.embed.tokens.weight.register_hook(spoil),
    "gradient of a norm": lambda task, spoil: task.model.output_norm.weight.register_hook(spoil),
}
"""Where a number may go bad -> how to have a function change what is computed there."""


@dataclass(frozen=True)
class Spoilt:
    """A fault: from one step on, one number in `place` is `value`, on the first micro-batch of one rank."""

    place: str
    value: float
    rank: int
    last_step: float = BAD_STEP

    def __call__(self, rank: int) -> None:
        if rank == self.rank:
            replace("pretrain.loop:build_objective", self._in_task)

    def _in_task(self, build_objective: Callable[..., Any]) -> Callable[..., Any]:
        def build(*args: Any) -> Any:
            task = build_objective(*args)
            passes = itertools.count()
            current = -1

            def count(*args: object) -> None:
                nonlocal current
                current = next(passes)

            def spoil(tensor: Any) -> Any:
                step, micro_batch = divmod(current, ACCUMULATION)
                bad = micro_batch == 0 and BAD_STEP <= step + 1 <= self.last_step
                return with_one(tensor, self.value) if bad else tensor

            task.register_forward_pre_hook(count)
            PLACES[self.place](task, spoil)
            return task

        return build


def refuse_bad_step(rank: int) -> None:
    """A fault: the step is skipped with all its numbers sound."""

    def refusing(judge: Callable[..., Any]) -> Callable[..., Any]:
        steps = itertools.count(1)
        return lambda *args: "refused" if next(steps) == BAD_STEP else judge(*args)

    replace("pretrain.stability:StabilityGuard.judge", refusing)


def training(run: Path) -> list[dict[str, Any]]:
    """Records of all steps but the bad one."""
    return [record for record in records(run) if record["step"] != BAD_STEP]


@pytest.fixture(scope="module")
def without_bad_step(tmp_path_factory, write_run) -> Callable[[str, int], Path]:
    """A run that skips the bad step for no reason, by precision and ZeRO stage."""
    runs: dict[tuple[str, int], Path] = {}

    def run(precision: str, stage: int) -> Path:
        if (precision, stage) not in runs:
            folder = tmp_path_factory.mktemp("without") / "run"
            config = write_run(folder, **FIELDS, train__precision=precision, train__zero={"stage": stage})
            start(config, faults=[refuse_bad_step]).expect(0, 0)
            runs[precision, stage] = folder
        return runs[precision, stage]

    return run


CASES = [(place, value, "fp32", 1) for place in PLACES for value in (math.nan, math.inf)]
CASES += [("last layer", math.nan, "fp32", 0), ("gradient of a matrix", math.nan, "fp32", 0)]
CASES += [
    (place, math.nan, precision, stage)
    for place in ("last layer", "gradient of a matrix")
    for precision, stage in (("fp32", 2), ("fp32", 3), ("bf16", 1), ("bf16", 3))
]
SHORT = [("gradient of a norm", math.nan, "fp32", 1)]


@pytest.mark.parametrize(
    ("place", "value", "precision", "stage"),
    [pytest.param(*case, marks=() if case in SHORT else pytest.mark.faults) for case in CASES],
)
def test_bad_number(tmp_path, write_run, without_bad_step, survived, place, value, precision, stage):
    config = write_run(tmp_path / "run", **FIELDS, train__precision=precision, train__zero={"stage": stage})
    start(config, faults=[Spoilt(place, value, rank=1)]).expect(0, 0)
    run, expected = config.with_suffix(""), without_bad_step(precision, stage)
    assert training(run) == training(expected)
    assert tensors(run, 12) == tensors(expected, 12)
    [skipped] = [record for record in records(run) if record["kind"] == "skipped"]
    assert skipped["step"] == BAD_STEP and "not finite" in skipped["problem"]
    assert skipped["samples"] == [4 * (BAD_STEP - 1), 4 * BAD_STEP - 1]
    survived(f"{value} in the {place}, {precision}, ZeRO {stage}", "step skipped on all ranks, nothing else changed")


@pytest.mark.faults
def test_numbers_that_stay_bad(tmp_path, write_run, survived):
    config = write_run(tmp_path / "run", **FIELDS, stability__max_skipped_steps=3)
    faults = [Spoilt("last layer", math.nan, rank=1, last_step=math.inf)]
    output = start(config, faults=faults).expect(ABORTED, ABORTED)
    assert f"no update in steps {BAD_STEP} to {BAD_STEP + 2}" in output
    survived("NaN in every step from one on", f"ended with exit code {ABORTED} after stability.max_skipped_steps")
