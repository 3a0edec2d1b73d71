"""Pairs of frames as the numbered examples that a run trains on and is validated on."""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np
import torch

from pretrain.tasks.examples import ExampleBatch, sample_generator
from pretrain.tasks.optical_flow.augmentation import augment, strength
from pretrain.tasks.optical_flow.config import OpticalFlowRunConfig
from pretrain.tasks.optical_flow.pair import Pair
from pretrain.tasks.optical_flow.sources import Source, open_sources


class FlowExamples:
    """Batches of `frames` (rows, 2, H, W, 3) uint8, and of their `flow` (rows, directions, H, W, 2) float32 in pixels
    where it is `valid` (rows, directions, H, W) bool; `occluded`, likewise, is what the other frame does not show.

    Targets are valid pixels. H and W are the model's in training. Validation frames are whole, and of any size: `sizes`
    (rows, 2) int64 are the height and width of each, what lies beyond is zero.
    """

    def __init__(self, source: Source, config: OpticalFlowRunConfig, threads: Executor, *, augmented: bool) -> None:
        """Pairs are read in `threads`; `augmented` as training sees them, the others as validation does."""
        self.fingerprint = source.fingerprint
        self._source, self._config, self._threads, self._augmented = source, config, threads, augmented

    def __len__(self) -> int:
        return self._source.size

    def batch(self, numbers: np.ndarray, samples: np.ndarray) -> ExampleBatch:
        pairs = list(self._threads.map(self._pair, numbers.tolist(), samples.tolist()))
        sizes = np.array([pair.shape for pair in pairs], np.int64)
        tensors = {
            name: torch.from_numpy(np.stack([_padded(getattr(pair, name), sizes.max(axis=0)) for pair in pairs]))
            for name in Pair._fields
        }
        return ExampleBatch(
            tensors | {"sizes": torch.from_numpy(sizes)},
            counts=tensors["valid"].flatten(1).sum(dim=1),
            indices=torch.from_numpy(samples.copy()),
        )

    def describe(self, number: int) -> str:
        return self._source.place(number)

    def _pair(self, number: int, sample: int) -> Pair:
        config, pair = self._config, self._source.read(number)
        if not self._augmented:
            return pair
        amount = strength(config.augmentation, sample // config.train.global_batch)
        generator = sample_generator(config.run.seed, sample)
        return augment(pair, config.model.frame_shape, config.augmentation, amount, generator)


def _padded(values: np.ndarray, size: np.ndarray) -> np.ndarray:
    """(n, height, width, ...) -> (n, *size, ...), with zeros below and to the right."""
    beyond = [(0, 0)] * values.ndim
    beyond[1:3] = [(0, int(side) - given) for side, given in zip(size, values.shape[1:3], strict=True)]
    return np.pad(values, beyond)


def open_examples(config: OpticalFlowRunConfig) -> tuple[FlowExamples, FlowExamples]:
    """What is trained on, and what is validated on. Raises InputError where a folder does not hold what it should."""
    threads = ThreadPoolExecutor(config.data.threads, thread_name_prefix="pairs")
    train, validation = open_sources(config)
    return (
        FlowExamples(train, config, threads, augmented=True),
        FlowExamples(validation, config, threads, augmented=False),
    )
