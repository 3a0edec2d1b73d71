"""Where a rank is, written down from outside the product, and what happens to it there.

A fault is a function of the rank, called in the rank's process before it starts: it patches the product's functions.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

PHASES = {
    "joining": "pretrain.loop:join",
    "opening the data": "pretrain.loop:open_data",
    "verifying checkpoints": "pretrain.loop:newest_whole",
    "building the model": "pretrain.loop:build_objective",
    "starting DeepSpeed": "pretrain.engine:Engine.__init__",
    "reading": "pretrain.loop:Run._read",
    "agreeing": "pretrain.loop:Run._agree",
    "forward": "pretrain.engine:Engine.__call__",
    "backward": "pretrain.engine:Engine.backward",
    "update": "pretrain.engine:Engine.step",
    "logging": "pretrain.recording:Recorder.trained",
    "validation": "pretrain.loop:Run._validate",
    "snapshot": "pretrain.checkpoint.saver:Saver.begin",
    "writing": "pretrain.checkpoint.saver:write_share",
    "finishing a save": "pretrain.checkpoint.saver:Saver.finish",
    "publishing": "pretrain.checkpoint.saver:publish",
    "pruning": "pretrain.checkpoint.saver:prune",
    "leaving": "pretrain.distributed.leaving:leave",
}
"""What a rank does, in the order of a run -> the function of the product that does it.

Publishing and pruning are rank 0's; writing and pruning go on in a thread beside the others.
"""
SAVING = {"snapshot", "writing", "finishing a save", "publishing", "pruning"}
NAMES = list(PHASES)


def replace(target: str, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Put ``change(function)`` in the place of ``module:function`` or ``module:Class.method``."""
    module, _, path = target.partition(":")
    *parents, name = path.split(".")
    owner = functools.reduce(getattr, parents, importlib.import_module(module))
    function = getattr(owner, name)
    setattr(owner, name, functools.wraps(function)(change(function)))


@dataclass(frozen=True)
class At:
    """A fault: at a rank's `entry`-th entry into a phase, before anything of it is done, `action` happens."""

    phase: str
    action: Callable[[], None]
    entry: int = 1
    ranks: tuple[int, ...] = (0, 1)

    def __call__(self, rank: int) -> None:
        if rank in self.ranks:
            replace(PHASES[self.phase], self._acting)

    def _acting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        entries = itertools.count(1)

        def act_first(*args: Any, **kwargs: Any) -> Any:
            if next(entries) == self.entry:
                self.action()
            return function(*args, **kwargs)

        return act_first


def get_killed() -> None:
    send(signal.SIGKILL)


def send(number: signal.Signals) -> None:
    """A signal to the process that calls it."""
    os.kill(os.getpid(), number)


def hang() -> None:
    time.sleep(3600)


class Trace:
    """What ranks were last known to do, in mapped files: they outlive a kill at any instant.

    As a fault, it makes the ranks write that down.
    """

    def __init__(self, folder: Path, ranks: int = 2) -> None:
        self._folder = folder
        for rank in range(ranks):
            self._memory(rank, "w+")

    def __call__(self, rank: int) -> None:
        memory = self._memory(rank, "r+")
        for index, target in enumerate(PHASES.values(), start=1):
            replace(target, functools.partial(_noted, memory, index))

    def _memory(self, rank: int, mode: Literal["r", "r+", "w+"] = "r") -> np.memmap:
        return np.memmap(self._folder / f"rank{rank}.trace", np.int64, mode, shape=2 + len(PHASES))

    def now(self, rank: int) -> set[str]:
        """Phases a rank is in: of its main thread and of the thread that writes a checkpoint."""
        return {NAMES[index - 1] for index in self._memory(rank)[:2] if index}

    def entries(self, rank: int, phase: str) -> int:
        """How often a rank has entered a phase."""
        return int(self._memory(rank)[2 + NAMES.index(phase)])


def _noted(memory: np.memmap, index: int, function: Callable[..., Any]) -> Callable[..., Any]:
    def note(*args: Any, **kwargs: Any) -> Any:
        thread = 0 if threading.current_thread() is threading.main_thread() else 1
        before = memory[thread]
        memory[thread] = index
        memory[1 + index] += 1
        try:
            return function(*args, **kwargs)
        finally:
            memory[thread] = before

    return note
