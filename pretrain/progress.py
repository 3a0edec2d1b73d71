"""How far a run is: what every checkpoint remembers of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.checkpoint import read_state
from pretrain.errors import InputError


@dataclass
class Progress:
    """What a run has done so far; part of every checkpoint."""

    step: int = 0
    """Completed steps, skipped ones included."""
    trained_targets: int = 0
    """Targets of the steps that were applied."""
    skipped_steps: int = 0
    seconds: float = 0.0
    """Wall time in training, over all attempts."""
    interval_loss: float = 0.0
    """Sum over targets since the last logged step, of all ranks and applied steps."""
    interval_targets: int = 0
    """Targets of the same."""
    stability: dict[str, Any] | None = None
    """What `StabilityGuard` remembers."""
    validation: dict[str, Any] | None = None
    """The last validation's record."""
    data_state: dict[str, Any] | None = None
    """Where streamed data goes on; prepared data needs no more than `step`. Between checkpoints, this rank's share."""

    def count(self, loss: float, targets: int, *, applied: bool) -> None:
        """A step of `targets`, with `loss` for each."""
        self.step += 1
        if applied:
            self.trained_targets += targets
            self.interval_targets += targets
            self.interval_loss += loss * targets
        else:
            self.skipped_steps += 1

    @property
    def is_validated(self) -> bool:
        """At this step."""
        return self.validation is not None and self.validation["step"] == self.step

    def is_done(self, steps: int) -> bool:
        """Whether a run of `steps` has nothing left to do, its last validation included."""
        return self.step > steps or (self.step == steps and self.is_validated)


class Interval:
    """Sums over the steps since the last logged one in this process."""

    def __init__(self) -> None:
        self.steps = 0
        self.targets = 0
        """Of all ranks, those of skipped steps too."""
        self.seconds = 0.0
        self.waited = 0.0
        """Seconds of `seconds` spent waiting for data."""

    def took(self, targets: int, seconds: float, waited: float) -> None:
        self.steps += 1
        self.targets += targets
        self.seconds += waited + seconds
        self.waited += waited


def read_progress(checkpoint: Path | None, fingerprints: Mapping[str, str]) -> Progress:
    """What the run had done when it was saved, nothing without a checkpoint; `fingerprints` are of its data now.

    Raises InputError where it was trained on other data.
    """
    if checkpoint is None:
        return Progress()
    state = read_state(checkpoint)
    # By their order, as a single corpus that has moved may have another name.
    for (name, now), before in zip(fingerprints.items(), state["data"]["fingerprints"].values(), strict=True):
        if before != now:
            raise InputError(
                f"data: {name} is other data (fingerprint {now}) than what {checkpoint} was trained on "
                f"({before}): give the path of that, or choose another run.dir"
            )
    return Progress(**{field.name: state[field.name] for field in dataclasses.fields(Progress)})
