"""Batches of windows, read ahead of training by a thread.

One thread, not worker processes: reading is copying from the page cache, which NumPy does faster than processes can
hand the result over.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch
import xxhash

from pretrain.corpus.order import SampleOrder
from pretrain.corpus.windows import StridedWindows, Window
from pretrain.errors import InputError

PLANNED_SAMPLES = 4096
"""Samples whose windows are looked up at once: one call of the order costs about as much for 4096 as for 8."""


@dataclass(frozen=True)
class Batch:
    input_ids: torch.Tensor
    """(micro_batch, context) int64."""
    targets: torch.Tensor
    """(micro_batch, latents) int64, -100 = ignored."""
    key_valid: torch.Tensor | None
    """(micro_batch, context) bool, False on padding; None if all positions are valid."""
    indices: torch.Tensor
    """(micro_batch,) int64 global sample numbers."""


@dataclass(frozen=True)
class StepBatch:
    step: int
    micro_batches: list[Batch]
    """One rank's slice of the step's global batch."""
    wait: float
    """Seconds the consumer waited for it."""


class BatchReader:
    """One rank's batches of steps `start_step` to `stop_step` - 1, in order, once.

    Row r of step s is the global sample s * global_batch + r, whatever the number of ranks; rank k takes the k-th of
    `world_size` equal runs of rows. Iterate, and `close` it (or use it as a context manager) when stopping early. What
    goes wrong while reading ahead is raised at the step it belongs to.
    """

    def __init__(
        self,
        dataset: StridedWindows,
        order: SampleOrder,
        *,
        global_batch: int,
        micro_batch: int,
        rank: int,
        world_size: int,
        start_step: int,
        stop_step: int,
        read_ahead: int,
    ):
        if global_batch % (micro_batch * world_size):
            raise InputError(
                f"train.global_batch: {global_batch} is not a multiple of "
                f"micro_batch {micro_batch} times {world_size} ranks"
            )
        self._dataset = dataset
        self._order = order
        self._global_batch = global_batch
        self._micro_batch = micro_batch
        rows = global_batch // world_size
        self._rows = slice(rank * rows, (rank + 1) * rows)
        self._ready: queue.Queue[tuple[int, list[Batch]] | BaseException | None] = queue.Queue()
        self._room = threading.Semaphore(read_ahead)
        self._closing = threading.Event()
        self._thread = threading.Thread(
            target=self._read_ahead, args=(start_step, stop_step), name="batch-reader", daemon=True
        )
        self._thread.start()

    def __iter__(self) -> Iterator[StepBatch]:
        return self

    def __next__(self) -> StepBatch:
        if self._closing.is_set():
            raise StopIteration
        began = time.perf_counter()
        item = self._ready.get()
        if isinstance(item, tuple):
            self._room.release()
            return StepBatch(*item, wait=time.perf_counter() - began)
        self.close()
        if item is None:
            raise StopIteration
        raise item

    def batch_hash(self, step: int) -> str:
        """xxh64 of a step's global batch: input ids, then targets of each sample in order, as little-endian int64."""
        digest = xxhash.xxh64()
        for number in self._order.index(self._samples(step)):
            window = self._dataset.window(int(number))
            digest.update(window.input_ids.astype("<i8", copy=False).tobytes())
            digest.update(window.targets.astype("<i8", copy=False).tobytes())
        return digest.hexdigest()

    def close(self) -> None:
        """Stop reading ahead and wait for the thread; more than once does no harm."""
        self._closing.set()
        self._room.release()
        self._thread.join()

    def __enter__(self) -> BatchReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _samples(self, step: int) -> np.ndarray:
        return step * self._global_batch + np.arange(self._global_batch, dtype=np.int64)

    def _read_ahead(self, start_step: int, stop_step: int) -> None:
        try:
            for step, samples, windows in self._planned(start_step, stop_step):
                self._room.acquire()
                if self._closing.is_set():
                    return
                self._ready.put((step, self._micro_batches(samples, windows)))
            self._ready.put(None)
        except BaseException as error:
            self._ready.put(error)

    def _planned(self, start_step: int, stop_step: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Steps with this rank's global sample numbers and windows."""
        steps_at_once = -(-PLANNED_SAMPLES // self._global_batch)
        for first in range(start_step, stop_step, steps_at_once):
            steps = range(first, min(first + steps_at_once, stop_step))
            samples = np.stack([self._samples(step)[self._rows] for step in steps])
            yield from zip(steps, samples, self._order.index(samples), strict=True)

    def _micro_batches(self, samples: np.ndarray, windows: np.ndarray) -> list[Batch]:
        starts = range(0, len(samples), self._micro_batch)
        cuts = [slice(start, start + self._micro_batch) for start in starts]
        return [
            Batch(
                *stack_windows([self._dataset.window(int(w)) for w in windows[cut]]),
                torch.from_numpy(samples[cut].copy()),
            )
            for cut in cuts
        ]


def stack_windows(windows: Sequence[Window]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """`input_ids`, `targets` and `key_valid` of a batch of windows; `key_valid` is None where none has padding."""
    valid = None
    if any(window.valid is not None for window in windows):
        full = np.ones_like(windows[0].input_ids, dtype=bool)
        valid = torch.from_numpy(np.stack([full if window.valid is None else window.valid for window in windows]))
    input_ids = torch.from_numpy(np.stack([window.input_ids for window in windows]))
    return input_ids, torch.from_numpy(np.stack([window.targets for window in windows])), valid
