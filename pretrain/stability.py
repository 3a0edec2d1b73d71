"""Steps that must not be applied, and runs that must not go on."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from pretrain.config import StabilitySection

NORMAL_SIGMA = 1.4826
"""Times the median absolute deviation is the standard deviation of what is normally distributed (Hampel 1974)."""
LOSS_FLOOR = 0.05
"""A robust deviation of losses counts as at least this fraction of their median: smooth curves deviate by next to
nothing, and any ripple on them would be many sigmas."""
GRAD_NORM_FLOOR = 0.5
"""The same of gradient norms, which scatter widely in healthy runs."""


def not_finite(loss: float, grad_norm: float) -> str | None:
    """Why a step with these values cannot be applied by anybody, or None."""
    if not math.isfinite(loss):
        return "loss not finite"
    if not math.isfinite(grad_norm):
        return "gradient norm not finite"
    return None


class StabilityGuard:
    """Judges each step before it is applied, by the loss and gradient norm of the last applied ones.

    Steps beyond so many deviations are skipped and left out of the history as in OLMo-core's `SkipStepOptimizer`, which
    keeps them in it and goes by mean and standard deviation; median and median absolute deviation (Hampel's
    identifier) do not move with the outliers they are to find. Leaving out batches at which the loss spikes is what
    PaLM did by hand (Chowdhery et al. 2022, section 5.1). Only high values are spikes.

    All ranks judge the same values, so they judge alike.
    """

    def __init__(self, section: StabilitySection, state: dict[str, Any] | None) -> None:
        """`state` is what `state` returned when the run was saved; None for a new run."""
        state = state or {"losses": [], "grad_norms": [], "lowest": None, "problems": []}
        self._section = section
        self._losses = deque[float](state["losses"], maxlen=section.window)
        self._grad_norms = deque[float](state["grad_norms"], maxlen=section.window)
        self._lowest: float | None = state["lowest"]
        self._problems: list[str] = list(state["problems"])

    def judge(self, loss: float, grad_norm: float) -> str | None:
        """Why a step is to be skipped, or None; `loss` in nats per target, `grad_norm` before clipping."""
        if (problem := not_finite(loss, grad_norm)) is not None:
            return problem
        sigmas = self._section.sigmas
        if sigmas is None or not self._is_full:
            return None
        if loss > (limit := spike_limit(self._losses, sigmas, LOSS_FLOOR)):
            return f"loss {loss:.4g} is a spike (limit {limit:.4g})"
        if grad_norm > (limit := spike_limit(self._grad_norms, sigmas, GRAD_NORM_FLOOR)):
            return f"gradient norm {grad_norm:.4g} is a spike (limit {limit:.4g})"
        return None

    def took(self, loss: float, grad_norm: float) -> None:
        """A step was applied."""
        self._losses.append(loss)
        self._grad_norms.append(grad_norm)
        self._problems.clear()
        if self._is_full:
            level = median(self._losses)
            self._lowest = level if self._lowest is None else min(self._lowest, level)

    def skipped(self, problem: str) -> None:
        """A step was skipped, as `judge` had said."""
        self._problems.append(problem)

    def new_data(self) -> None:
        """Forget what steps were like: those to come have other data."""
        self._losses.clear()
        self._grad_norms.clear()
        self._lowest = None

    def verdict(self, step: int, run_dir: Path) -> str | None:
        """Why training should stop after `step` steps, and what to look at; None where it may go on."""
        if len(self._problems) >= self._section.max_skipped_steps:
            first = step - len(self._problems) + 1
            why = (
                f"no update in steps {first} to {step} (stability.max_skipped_steps: "
                f"{self._section.max_skipped_steps}), the last time because: {self._problems[-1]}"
            )
        elif self._is_stuck_high:
            first = step
            why = (
                f"the median loss of the last {self._section.window} applied steps is {median(self._losses):.4g}, it "
                f"has been {self._lowest:.4g} (stability.max_rise: {self._section.max_rise:g})"
            )
        else:
            return None
        return (
            f"aborted after step {step}: {why}; look at the losses, gradient norms and skipped steps in "
            f"{run_dir / 'metrics.jsonl'} and into a step by python pretrain/replay.py --run {run_dir} --step {first}; "
            "another run with a lower optimizer.lr or more schedule.warmup_steps may stay stable"
        )

    def state(self) -> dict[str, Any]:
        """All it remembers, JSON-able."""
        return {
            "losses": list(self._losses),
            "grad_norms": list(self._grad_norms),
            "lowest": self._lowest,
            "problems": list(self._problems),
        }

    @property
    def _is_full(self) -> bool:
        return len(self._losses) == self._section.window

    @property
    def _is_stuck_high(self) -> bool:
        if self._section.max_rise is None or self._lowest is None:
            return False
        return median(self._losses) > self._section.max_rise * self._lowest


def spike_limit(history: Sequence[float], sigmas: float, floor: float) -> float:
    """The largest value that is no spike after `history`: `sigmas` robust deviations above its median.

    A deviation counts as at least `floor` of the median.
    """
    middle = median(history)
    deviation = median(abs(value - middle) for value in history)
    return middle + sigmas * max(NORMAL_SIGMA * deviation, floor * middle)
