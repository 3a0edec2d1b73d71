"""Batches of windows, read ahead of training by a thread.

One thread, not worker processes: reading is copying from the page cache, which NumPy does faster than processes can
hand the result over.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
import xxhash

from pretrain.corpus.samples import Plan, SampleSequence, rows_of_rank
from pretrain.corpus.windows import IGNORED, Window
from pretrain.tasks.task import Batch as TaskBatch

PLANNED_SAMPLES = 65_536
"""Global samples planned at once, about: far cheaper for each than a step at a time, and what remote shards are fetched
ahead by."""


@dataclass(frozen=True)
class Batch:
    input_ids: torch.Tensor
    """(micro_batch, context) int64."""
    targets: torch.Tensor
    """(micro_batch, latents) int64, -100 = ignored."""
    key_valid: torch.Tensor | None
    """(micro_batch, context) bool, False on padding; None if all positions are valid."""
    segments: torch.Tensor | None
    """(micro_batch, context) int32, number of the document within its window; None where boundaries are not kept."""
    indices: torch.Tensor
    """(micro_batch,) int64 global sample numbers."""

    def to(self, device: torch.device) -> Batch:
        moved: dict[str, Any] = {k: x if x is None else x.to(device, non_blocking=True) for k, x in vars(self).items()}
        return Batch(**moved)

    def target_counts(self) -> torch.Tensor:
        """(micro_batch,) int64."""
        return (self.targets != IGNORED).sum(1)

    def row_hashes(self) -> Iterator[int]:
        """xxh64 of each row: input ids and targets as little-endian int64, segments, if any, as int32."""
        columns = [(self.input_ids, "<i8"), (self.targets, "<i8"), (self.segments, "<i4")]
        arrays = [tensor.numpy().astype(dtype, copy=False) for tensor, dtype in columns if tensor is not None]
        for rows in zip(*arrays, strict=True):
            digest = xxhash.xxh64()
            for row in rows:
                digest.update(row.tobytes())
            yield digest.intdigest()


@dataclass(frozen=True)
class StepBatch:
    step: int
    micro_batches: Sequence[TaskBatch]
    """One rank's slice of the step's global batch."""
    wait: float = 0.0
    """Seconds the consumer waited for it."""
    state: dict[str, Any] | None = None
    """Where this rank's virtual streams stand after the step, JSON-able; None where the step's number says it."""

    def sample_hashes(self) -> list[int]:
        """xxh64 of each row."""
        return [value for batch in self.micro_batches for value in batch.row_hashes()]


def global_hash(sample_hashes: Sequence[int]) -> str:
    """xxh64 of a global batch, from `StepBatch.sample_hashes` of all ranks, joined in order of rank.

    Ranks hold consecutive rows, so it is the same for every number of ranks and every micro-batch.
    """
    return xxhash.xxh64_hexdigest(np.array(sample_hashes, dtype="<u8").tobytes())


class StepReader:
    """One rank's steps, made by a thread that is up to `read_ahead` of them before its consumer.

    Iterate, and `close` it (or use it as a context manager) when stopping early. What goes wrong while reading ahead is
    raised at the step it belongs to.
    """

    def __init__(self, steps: Iterator[StepBatch], read_ahead: int):
        self._steps = steps
        self._ready: queue.Queue[StepBatch | BaseException | None] = queue.Queue()
        self._room = threading.Semaphore(read_ahead)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._read_ahead, name="step-reader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StepBatch:
        step = self.next_unless(lambda: False)
        assert step is not None
        return step

    def next_unless(self, stopped: Callable[[], bool]) -> StepBatch | None:
        """The next step, or None where `stopped` says so while it is waited for: data may stall for minutes."""
        if self._closing.is_set():
            raise StopIteration
        began = time.perf_counter()
        while True:
            try:
                item = self._ready.get(timeout=0.5)
                break
            except queue.Empty:
                if stopped():
                    return None
        if isinstance(item, StepBatch):
            self._room.release()
            return dataclasses.replace(item, wait=time.perf_counter() - began)
        self.close()
        if item is None:
            raise StopIteration
        raise item

    def close(self) -> None:
        """Stop reading ahead; more than once does no harm."""
        self._closing.set()
        self._room.release()
        # A thread in a stalled download ends long after: a run that was asked to stop does not wait for it.
        self._thread.join(timeout=5)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_ahead(self) -> None:
        try:
            while True:
                self._room.acquire()
                if self._closing.is_set():
                    return
                step = next(self._steps, None)
                self._ready.put(step)
                if step is None:
                    return
        except BaseException as error:
            self._ready.put(error)


class BatchReader(StepReader):
    """One rank's batches of steps `start_step` to `stop_step` - 1, in order, once.

    Row r of step s is the global sample s * global_batch + r, whatever the number of ranks.

    Raises:
        InputError: `global_batch` does not divide into ranks and micro-batches.
    """

    def __init__(
        self,
        samples: SampleSequence,
        *,
        global_batch: int,
        micro_batch: int,
        rank: int,
        world_size: int,
        start_step: int,
        stop_step: int,
        read_ahead: int,
    ):
        self._rows = rows_of_rank(global_batch, micro_batch, rank, world_size)
        self._samples = samples
        self._global_batch = global_batch
        self._micro_batch = micro_batch
        super().__init__(self._read(start_step, stop_step), read_ahead)

    def _read(self, start_step: int, stop_step: int) -> Iterator[StepBatch]:
        for first, samples, plan in self._planned(start_step, stop_step):
            for i in range(len(samples)):
                numbers = zip(plan.source[i].tolist(), plan.window[i].tolist(), plan.epoch[i].tolist(), strict=True)
                windows = [self._samples.window(*number) for number in numbers]
                yield StepBatch(first + i, cut_micro_batches(windows, samples[i], self._micro_batch))

    def _planned(self, start_step: int, stop_step: int) -> Iterator[tuple[int, np.ndarray, Plan]]:
        """First step, this rank's samples (steps, rows) and their plan, announced one chunk before it is yielded."""
        steps_at_once = -(-PLANNED_SAMPLES // self._global_batch)
        planned: tuple[int, np.ndarray, Plan] | None = None
        for first in range(start_step, stop_step, steps_at_once):
            steps = np.arange(first, min(first + steps_at_once, stop_step), dtype=np.int64)
            samples = steps[:, None] * self._global_batch + self._rows
            plan = self._samples.plan(samples)
            self._samples.will_read(plan)
            if planned is not None:
                yield planned
            planned = first, samples, plan
        if planned is not None:
            yield planned


def cut_micro_batches(windows: Sequence[Window], samples: np.ndarray, micro_batch: int) -> list[Batch]:
    """Batches of `micro_batch` windows each; `samples` are their global sample numbers, (windows,) int64."""
    cuts = [slice(start, start + micro_batch) for start in range(0, len(windows), micro_batch)]
    return [Batch(*stack_windows(windows[cut]), torch.from_numpy(samples[cut].copy())) for cut in cuts]


def stack_windows(
    windows: Sequence[Window],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """`input_ids`, `targets`, `key_valid` and `segments` of a batch; `key_valid` is None where there is no padding."""
    valid = None
    if any(window.valid is not None for window in windows):
        full = np.ones_like(windows[0].input_ids, dtype=bool)
        valid = torch.from_numpy(np.stack([full if window.valid is None else window.valid for window in windows]))
    segments = [window.segments for window in windows if window.segments is not None]
    return (
        torch.from_numpy(np.stack([window.input_ids for window in windows])),
        torch.from_numpy(np.stack([window.targets for window in windows])),
        valid,
        torch.from_numpy(np.stack(segments)) if segments else None,
    )
