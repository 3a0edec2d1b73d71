"""Training steps timed part by part, with the configured attention and with a baseline in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perceiver_ar.blocks.attend import describe_backend, use_backend
from perceiver_ar.cost import count_parameters, training_flops_per_token
from pretrain.corpus import Batch, StepBatch
from pretrain.corpus.samples import rows_of_rank
from pretrain.data import PreparedData, corpus_locations
from pretrain.distributed import Ranks
from pretrain.engine import Engine, Judge, Update
from pretrain.hardware import matmul_peak, peak_memory_gib
from pretrain.progress import Progress
from pretrain.stability import not_finite
from pretrain.startup import build_objective
from pretrain.tasks.causal_lm.config import CausalLMConfig
from pretrain.trained_model import DTYPES
from pretrain.training_step import train_step

BASELINE = "reference"
"""Attention as einsum, softmax, einsum."""
PHASES = ("forward", "backward", "optimizer")
WARM_UP_STEPS = 2


class TimedEngine(Engine):
    """An engine that notes when each phase of a step ends, by the device's own clock: a GPU is not made to wait."""

    def start(self) -> None:
        self._marks: list[tuple[str, Any]] = []
        self._mark("start")

    def __call__(self, batch: Any) -> Any:
        output = super().__call__(batch)
        self._mark("forward")
        return output

    def backward(self, loss: Tensor, *, last: bool) -> None:
        super().backward(loss, last=last)
        self._mark("backward")

    def step(self, lr: float, loss: Tensor, judge: Judge) -> Update:
        result = super().step(lr, loss, judge)
        self._mark("optimizer")
        return result

    def _mark(self, phase: str) -> None:
        if self.ranks.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((phase, event))
        else:
            self._marks.append((phase, time.perf_counter()))

    def finish(self) -> dict[str, float]:
        """Wait for the device; seconds of each phase since `start`."""
        cuda = self.ranks.device.type == "cuda"
        if cuda:
            torch.cuda.synchronize(self.ranks.device)
        seconds = dict.fromkeys(PHASES, 0.0)
        for (_, began), (phase, ended) in pairwise(self._marks):
            seconds[phase] += began.elapsed_time(ended) / 1000 if cuda else ended - began
        return seconds


@dataclass
class Arm:
    """The steps taken with one attention back end."""

    backend: str
    steps: list[dict[str, float]] = field(default_factory=list)
    """Seconds: `step` from asking for the batch to new weights, `wait` for the batch, and those of `PHASES`."""
    peak_gib: float = 0.0


def timed_step(engine: TimedEngine, batches: Iterator[StepBatch], config: CausalLMConfig) -> dict[str, float]:
    """One training step on the next batch; seconds by part."""
    began = time.perf_counter()
    batch = next(batches)
    engine.start()
    tokens = config.train.global_batch * config.model.max_latents
    train_step(engine, batch.micro_batches, tokens, config.optimizer.lr, config.run.seed, not_finite)
    phases = engine.finish()
    return {"step": time.perf_counter() - began, "wait": batch.wait, **phases}


def measure(config: CausalLMConfig, ranks: Ranks, steps: int) -> dict[str, Any]:
    """Steps with the configured attention and with the baseline, in turns, and what to judge them by. Collective."""
    device, dtype = ranks.device, DTYPES[config.train.precision]
    engine = TimedEngine(build_objective(config, None), config, ranks)
    attention = describe_backend(device, dtype, config.model.num_channels // config.model.num_heads)
    engine.train()
    arms = [Arm(config.train.attention), Arm(BASELINE)]
    source, reader = open_batches(config, ranks, len(arms) * (steps + WARM_UP_STEPS))
    with reader as batches:
        # The memory of a process is known by its peak so far: the baseline, which needs more, warms up after ours.
        for arm in arms:
            use_backend(arm.backend)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            for _ in range(WARM_UP_STEPS):
                timed_step(engine, batches, config)
            arm.peak_gib = ranks.max(peak_memory_gib(device))
        peak = matmul_peak(device, dtype)
        for _ in range(steps):
            for arm in arms:
                use_backend(arm.backend)
                arm.steps.append(timed_step(engine, batches, config))
        peak = max(peak, matmul_peak(device, dtype))
    [peak] = ranks.sum(peak)
    ours, baseline = (summarize(arm, config, peak) for arm in arms)
    return {
        "parameters": count_parameters(config.model),
        "training_flops_per_token": training_flops_per_token(config.model),
        "matmul_peak_flops": peak,
        "tokens": source,
        "steps": steps,
        "attention": attention,
        "ours": ours,
        "baseline": baseline,
        "speedup": baseline["step_seconds"] / ours["step_seconds"],
    }


def summarize(arm: Arm, config: CausalLMConfig, peak: float) -> dict[str, Any]:
    """The figures of one arm: medians over its steps; MFU against `peak` FLOP/s of all ranks."""
    seconds = [step["step"] for step in arm.steps]
    tokens_per_second = config.train.global_batch * config.model.max_latents / statistics.median(seconds)
    return {
        "step_seconds": statistics.median(seconds),
        "step_seconds_min": min(seconds),
        "step_seconds_max": max(seconds),
        "phase_seconds": {phase: statistics.median(step[phase] for step in arm.steps) for phase in PHASES},
        "tokens_per_second": tokens_per_second,
        "mfu": tokens_per_second * training_flops_per_token(config.model) / peak,
        "data_wait": sum(step["wait"] for step in arm.steps) / sum(seconds),
        "peak_memory_gib": arm.peak_gib,
    }


def open_batches(config: CausalLMConfig, ranks: Ranks, steps: int) -> tuple[str, Any]:
    """Where the tokens come from, and a context manager for this rank's batches of them: the run's corpus or, before it
    is prepared, random tokens."""
    rows = rows_of_rank(config.train.global_batch, config.train.micro_batch, ranks.rank, ranks.size)
    locations = [location for _, location in corpus_locations(config).values()]
    if config.data.stream is not None or not all("://" in place or Path(place).exists() for place in locations):
        return "random tokens", nullcontext(random_batches(config, rows))
    reading = config.model_copy(update={"train": config.train.model_copy(update={"steps": steps})})
    return ", ".join(locations), PreparedData(reading).reader(ranks, Progress())


def random_batches(config: CausalLMConfig, rows: np.ndarray) -> Iterator[StepBatch]:
    """The same random batch at every step: it costs what text costs, save reading it."""
    train, model = config.train, config.model
    micro_batches = []
    for samples in torch.from_numpy(rows).split(train.micro_batch):
        tokens = torch.randint(model.vocab_size, (train.micro_batch, model.max_seq_len + 1))
        micro_batches.append(Batch(tokens[:, :-1], tokens[:, -model.max_latents :], None, None, samples))
    return repeat(StepBatch(0, micro_batches, wait=0.0, state=None))
