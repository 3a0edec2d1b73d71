"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from pretrain.config import ScheduleSection


def learning_rate(step: int, peak: float, steps: int, schedule: ScheduleSection) -> float:
    """Learning rate of step number `step`, counted from 1 to `steps`.

    Warm-up is linear and reaches `peak` at step `warmup_steps`. After it ``constant`` stays there; ``cosine`` and
    ``linear`` decay until the last step; ``wsd`` stays and decays over the last `decay_steps` steps by ``1 - sqrt``
    (Hägele et al. 2024, https://arxiv.org/abs/2405.18392). A decay ends at exactly ``final_lr_fraction * peak``.
    """
    if step <= schedule.warmup_steps:
        return peak * step / schedule.warmup_steps
    decay_steps = schedule.decay_steps if schedule.kind == "wsd" else steps - schedule.warmup_steps
    done = max(0.0, 1 - (steps - step) / decay_steps) if decay_steps else 0.0
    match schedule.kind:
        case "constant":
            return peak
        case "cosine":
            height = (1 + math.cos(math.pi * done)) / 2
        case "linear":
            height = 1 - done
        case "wsd":
            height = 1 - math.sqrt(done)
    return peak * (schedule.final_lr_fraction + (1 - schedule.final_lr_fraction) * height)
