"""TensorBoard and Weights & Biases: copies of a run's numbers, which training can do without."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import xxhash

from pretrain.config import RunConfig


class Tracker(NamedTuple):
    track: Callable[[int, dict[str, float]], None]
    """Takes a step and its values by name, such as ``train/loss``."""
    close: Callable[[], None]


class Trackers:
    """The trackers a configuration asks for. One that fails is warned about and gets no more of this attempt."""

    def __init__(self, config: RunConfig, resumed_step: int) -> None:
        self._open: dict[str, Tracker] = {}
        opening: dict[str, Callable[[], Tracker]] = {}
        if config.logging.tensorboard:
            opening["TensorBoard"] = partial(_tensorboard, config.run.dir / "tensorboard", resumed_step)
        if config.logging.wandb_project:
            opening["Weights & Biases"] = partial(_wandb, config)
        for name, open_tracker in opening.items():
            with self._dropped_where_it_fails(name):
                self._open[name] = open_tracker()

    def track(self, step: int, numbers: dict[str, float]) -> None:
        for name, tracker in list(self._open.items()):
            with self._dropped_where_it_fails(name):
                tracker.track(step, numbers)

    def close(self) -> None:
        """Let them finish."""
        for name, tracker in list(self._open.items()):
            with self._dropped_where_it_fails(name):
                tracker.close()

    @contextmanager
    def _dropped_where_it_fails(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever the libraries and their servers come up with
            self._open.pop(name, None)
            print(
                f"warning: {name} failed ({error}): it gets no more of this attempt, metrics.jsonl has all numbers",
                file=sys.stderr,
                flush=True,
            )


def _tensorboard(folder: Path, resumed_step: int) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder), purge_step=resumed_step + 1)

    def track(step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return Tracker(track, writer.close)


def _wandb(config: RunConfig) -> Tracker:
    import wandb

    folder = config.run.dir.resolve()
    offline = "WANDB_MODE" not in os.environ and not wandb.login(prompt=False, verify=False)
    run = wandb.init(
        project=config.logging.wandb_project,
        dir=folder,
        name=folder.name,
        id=xxhash.xxh64_hexdigest(str(folder).encode()),
        resume="allow",
        mode="offline" if offline else None,
        config=config.model_dump(mode="json"),
        settings=wandb.Settings(silent=True),
    )

    def close() -> None:
        run.finish()
        wandb.teardown()  # waits for what `finish` only starts

    return Tracker(lambda step, numbers: run.log(numbers, step=step), close)
