"""Saving and loading the state of an engine, timed beside a plain copy of the same files, in turns."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from perceiver_ar.cost import count_parameters
from perceiver_ar.models.config import PerceiverARConfig
from pretrain.checkpoint import Saver, checkpoint_path, checkpoints_of, newest_whole, restore_checkpoint
from pretrain.checkpoint.layout import rank_file
from pretrain.config import CheckpointSection
from pretrain.distributed import Ranks
from pretrain.engine import Engine
from pretrain.files import sync
from pretrain.startup import build_objective
from pretrain.tasks.causal_lm.config import CausalLMConfig

CHANNELS = 512
BYTES_PER_PARAMETER = 12
"""fp32 weight and two moments."""


def measure(folder: Path, gigabytes: float, stage: int, turns: int, ranks: Ranks) -> dict[str, Any]:
    """Median, least and most seconds of everything, of the slowest rank. Collective."""
    [name, *_] = ranks.gather(tempfile.mkdtemp(prefix=".checkpoint-benchmark-", dir=folder) if ranks.is_main else "")
    run_dir = Path(name)
    try:
        engine = make_engine(run_dir, gigabytes, stage, ranks)
        seconds = Timing(run_dir, engine, ranks).take(turns)
        filesystem = _filesystem(run_dir)
    finally:
        if ranks.is_main:
            shutil.rmtree(run_dir)
    parameters = sum(torch.Size(shape).numel() for shape in engine.shapes.values())
    return {
        "bytes": parameters * BYTES_PER_PARAMETER,
        "parameters": parameters,
        "stage": stage,
        "turns": turns,
        "filesystem": filesystem,
        "seconds": {
            name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
            for name, values in seconds.items()
        },
        "save_over_copy": statistics.median(seconds["save"]) / statistics.median(seconds["copy"]),
    }


def make_engine(run_dir: Path, gigabytes: float, stage: int, ranks: Ranks) -> Engine:
    """A model of about that much state, not trained yet."""

    def model(layers: int) -> PerceiverARConfig:
        return PerceiverARConfig(
            vocab_size=262, max_seq_len=64, max_latents=16, num_channels=CHANNELS, num_heads=8, num_layers=layers
        )

    first, second = count_parameters(model(1)), count_parameters(model(2))
    layers = max(1, round((gigabytes * 1e9 / BYTES_PER_PARAMETER - first) / (second - first)) + 1)
    config = CausalLMConfig.model_validate(
        {
            "run": {"dir": run_dir},
            "model": model(layers),
            "data": {"corpus": "none"},
            "train": {"steps": 1, "global_batch": ranks.size, "micro_batch": 1, "precision": "fp32"}
            | {"zero": {"stage": stage}},
        }
    )
    return Engine(build_objective(config, None), config, ranks)


class Timing:
    """Seconds of the slowest rank by what they were spent on, a value for each turn."""

    def __init__(self, run_dir: Path, engine: Engine, ranks: Ranks) -> None:
        self.run_dir, self.engine, self.ranks = run_dir, engine, ranks
        # What deleting takes is not to be part of what saving takes.
        self.saver = Saver(run_dir, CheckpointSection(keep=1_000_000), ranks, engine)
        self.step = 0
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def take(self, turns: int) -> dict[str, list[float]]:
        """Everything `turns` times. Collective."""
        # The first save allocates memory, and gives the copy something to copy.
        self._save_in_background()
        self.seconds.clear()
        for _ in range(turns):
            for work in (self._copy, self._save, self._save_in_background, self._load):
                work()
        return self.seconds

    def _copy(self) -> None:
        name = rank_file(self.ranks.rank)
        copy = self.run_dir / f"copy-of-{name}"
        start = self._start()
        shutil.copyfile(checkpoint_path(self.run_dir, self.step) / name, copy)
        sync(copy)
        self._took("copy", start)
        copy.unlink()

    def _save(self) -> None:
        start = self._start()
        self._begin(background=False)
        assert self.saver.finish()
        self._took("save", start)

    def _save_in_background(self) -> None:
        start = self._start()
        self._begin(background=True)
        begun = time.perf_counter()
        self.saver.wait()
        self._took("written", start)
        written = time.perf_counter()
        assert self.saver.finish()
        self._took("wait", start + (written - begun))  # that time training goes on

    def _load(self) -> None:
        start = self._start()
        checkpoint = newest_whole(self.run_dir, self.ranks)
        self._took("verify", start)
        assert checkpoint is not None
        start = self._start()
        restore_checkpoint(checkpoint, self.engine)
        self._took("restore", start)

    def _begin(self, *, background: bool) -> None:
        self.step += 1
        self.saver.begin({"step": self.step}, background)

    def _start(self) -> float:
        """All ranks begin together, with one checkpoint on a disk that has nothing else to write. Collective."""
        if self.ranks.is_main:
            for old in checkpoints_of(self.run_dir)[1:]:
                shutil.rmtree(old)
            os.sync()
        self.ranks.gather(None)
        return time.perf_counter()

    def _took(self, what: str, start: float) -> None:
        self.seconds[what].append(self.ranks.max(time.perf_counter() - start))


def _filesystem(folder: Path) -> str:
    """The kind of file system that `folder` lies on."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    _, kind = max((place, kind) for place, kind in mounts if folder.resolve().is_relative_to(place))
    return kind
