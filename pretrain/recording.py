"""What a run says of itself while it trains: records of steps, skipped steps and validations."""

from __future__ import annotations

import math
import time
from itertools import chain

from pretrain.config import RunConfig
from pretrain.corpus import StepBatch, global_hash
from pretrain.distributed import Ranks
from pretrain.hardware import matmul_peak, peak_memory_gib
from pretrain.metrics import MetricsLog
from pretrain.progress import Interval, Progress
from pretrain.tasks.task import Record, Task, TrainingData
from pretrain.trained_model import DTYPES
from pretrain.training_step import StepResult, skipped_record


class Recorder:
    """Counts what the steps since the last logged one did, and writes records on rank 0."""

    def __init__(self, config: RunConfig, task: Task, data: TrainingData, ranks: Ranks, progress: Progress) -> None:
        self._config, self._data, self._ranks, self._progress = config, data, ranks, progress
        self._unit, self._step_flops = task.unit, task.step_flops()
        self._log = MetricsLog(config, progress.step) if ranks.is_main else None
        self._peak = matmul_peak(ranks.device, DTYPES[config.train.precision])
        self._clock = time.perf_counter() - progress.seconds
        self._interval = Interval()

    @property
    def seconds(self) -> float:
        """In training, over all attempts of the run."""
        return time.perf_counter() - self._clock

    def took(self, targets: int, seconds: float, waited: float) -> None:
        """A step of `targets` over all ranks took `seconds`, and its data had been waited for before that."""
        self._interval.took(targets, seconds, waited)

    def skipped(self, result: StepResult, batch: StepBatch) -> None:
        """Record which samples a step had that was skipped. Collective."""
        self._write(skipped_record(self._progress.step, result, batch.micro_batches, self._ranks))

    def trained(self, result: StepResult, batch: StepBatch, joined: Progress) -> None:
        """Record the steps since the last time, the last of which took `batch` and came to `result`. Collective.

        `joined` is the progress with all ranks' shares.
        """
        config, progress, interval = self._config, self._progress, self._interval
        memory = self._ranks.max(peak_memory_gib(self._ranks.device))
        hashes = self._ranks.gather(batch.sample_hashes())
        loss = progress.interval_loss / progress.interval_targets if progress.interval_targets else math.nan
        flops = self._step_flops * interval.steps / interval.seconds
        self._write(
            {
                "kind": "train",
                "step": progress.step,
                f"trained_{self._unit}": progress.trained_targets,
                "loss": loss,
                **self._data.measures(loss, batch.step),
                "lr": result.lr,
                "grad_norm": result.grad_norm,
                f"{self._unit}_per_second": interval.targets / interval.seconds,
                "mfu": flops / (self._peak * self._ranks.size),
                "data_wait": interval.waited / interval.seconds,
                "memory_gib": memory,
                "skipped_steps": progress.skipped_steps,
                "batch_hash": global_hash(list(chain.from_iterable(hashes))),
                "epochs": self._data.epochs(joined),
                "seconds": self.seconds,
            },
            eta=(config.train.steps - progress.step) * interval.seconds / interval.steps,
        )
        progress.interval_loss, progress.interval_targets = 0.0, 0
        self._interval = Interval()

    def validated(self, scores: Record) -> Record:
        """Record a validation; returns the record."""
        progress = self._progress
        counts = {"kind": "validation", "step": progress.step, f"trained_{self._unit}": progress.trained_targets}
        record = counts | scores | {"seconds": self.seconds}
        self._write(record)
        return record

    def sync(self) -> None:
        """Bring what was recorded to the disk: a checkpoint is not to know of steps that the records do not."""
        if self._log is not None:
            self._log.sync()

    def close(self) -> None:
        if self._log is not None:
            self._log.close()

    def _write(self, record: Record, eta: float | None = None) -> None:
        if self._log is not None:
            self._log.write(record, eta)
