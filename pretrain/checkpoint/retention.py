"""Which checkpoints stay."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from pathlib import Path
from typing import NamedTuple

from pretrain.checkpoint.layout import checkpoints_of, step_of
from pretrain.checkpoint.publishing import delete
from pretrain.checkpoint.reading import read_state
from pretrain.config import CheckpointSection
from pretrain.errors import InputError


def prune(run_dir: Path, section: CheckpointSection, damaged: Set[int]) -> None:
    """Delete the checkpoints that are not to stay, now that the newest undamaged one is whole. Raises OSError."""
    checkpoints = checkpoints_of(run_dir)[::-1]
    gone = outdated({step_of(path): _validation(path) for path in checkpoints}, section, damaged)
    for path in checkpoints:
        if step_of(path) in gone:
            delete(path)


class Validation(NamedTuple):
    step: int
    loss: float


def outdated(validations: Mapping[int, Validation | None], section: CheckpointSection, damaged: Set[int]) -> list[int]:
    """The steps whose checkpoints are to go, the oldest first.

    Args:
        validations: step -> the last validation by then, None without one, of all checkpoints of the run.
        damaged: steps of checkpoints that count for nothing, and go as soon as there is a newer one.
    """
    whole = sorted(validations.keys() - damaged)
    stay = set(whole[-section.keep :])
    # A save begins late while another is being written, or after one that failed: the first one afterwards counts.
    if every := section.keep_every:
        stay.update({step // every: step for step in reversed(whole) if step >= every}.values())
    if section.keep_best:
        scored = {seen: step for step in reversed(whole) if (seen := validations[step]) and math.isfinite(seen.loss)}
        if scored:
            stay.add(scored[min(scored, key=lambda seen: (seen.loss, -seen.step))])
    return sorted(step for step in validations.keys() - stay if step < max(whole, default=0))


def _validation(checkpoint: Path) -> Validation | None:
    try:
        validation = read_state(checkpoint)["validation"]
        return validation and Validation(validation["step"], validation["loss"])
    except (OSError, ValueError, KeyError, TypeError, InputError):  # it has been damaged since it was written
        return None
