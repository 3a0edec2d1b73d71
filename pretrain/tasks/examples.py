"""Data that consists of numbered examples, such as images: orders, batches and validates them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import torch
import xxhash
from torch import Tensor

from pretrain.config import ExampleRunConfig
from pretrain.corpus.order import SampleOrder, order_key
from pretrain.corpus.reader import StepBatch, StepReader
from pretrain.corpus.samples import rows_of_rank
from pretrain.errors import InputError
from pretrain.tasks.task import Record, Score

if TYPE_CHECKING:
    from pretrain.distributed import Ranks
    from pretrain.progress import Progress

SHUFFLED_TOGETHER = 1
"""Examples that stay neighbours; they are read one by one."""
READ_AHEAD = 4
"""Steps that a thread reads ahead of training."""


@dataclass(frozen=True)
class ExampleBatch:
    tensors: dict[str, Tensor]
    """By name, rows first."""
    counts: Tensor
    """(rows,) int64: targets of each row."""
    indices: Tensor
    """(rows,) int64 global sample numbers; of validation examples, -1 - number."""

    def to(self, device: torch.device) -> Self:
        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return type(self)(
            {name: moved(tensor) for name, tensor in self.tensors.items()}, moved(self.counts), moved(self.indices)
        )

    def target_counts(self) -> Tensor:
        return self.counts

    def row_hashes(self) -> Iterator[int]:
        columns = [tensor.contiguous().view(len(tensor), -1).view(torch.uint8) for tensor in self.tensors.values()]
        for rows in zip(*columns, strict=True):
            digest = xxhash.xxh64()
            for row in rows:
                digest.update(row.numpy().data)
            yield digest.intdigest()


class Examples(Protocol):
    """Numbered examples that can be read in any order, from any thread."""

    fingerprint: str
    """Another one where the examples or their order are others."""

    def __len__(self) -> int: ...

    def batch(self, numbers: np.ndarray, samples: np.ndarray) -> ExampleBatch:
        """The examples `numbers` (rows,) int64 as the samples `samples` (rows,) int64 of a run.

        Every random choice is a function of (seed, sample), see `sample_generator`. Raises InputError where an example
        is damaged, with its file or row.
        """

    def describe(self, number: int) -> str:
        """An example for people: where it is and what it says."""


def sample_generator(seed: int, sample: int) -> np.random.Generator:
    """The random stream of one sample of a run, whatever else is drawn."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, sample], dtype=np.int64).astype(np.uint64)))


class ExampleData:
    """Shuffled epochs of training examples, and validation examples as they are.

    A checkpoint remembers `labels`, what their classes are called, if they have any.
    """

    def __init__(
        self, config: ExampleRunConfig, train: Examples, validation: Examples, labels: Sequence[str] = ()
    ) -> None:
        """Raises InputError where there are fewer training examples than a step takes, or none to validate on."""
        batch = config.train.global_batch
        if len(train) < batch:
            raise InputError(f"train.global_batch: {batch} is more than the {len(train)} training examples: lower it")
        if len(validation) == 0:
            raise InputError("data: there are no validation examples")
        self._config, self._train, self._validation = config, train, validation
        self._labels = list(labels)
        self._order = SampleOrder(len(train), order_key(train.fingerprint, config.run.seed), SHUFFLED_TOGETHER)

    def reader(self, ranks: Ranks, progress: Progress) -> StepReader:
        return StepReader(self._steps(ranks, progress.step), READ_AHEAD)

    def _steps(self, ranks: Ranks, first: int) -> Iterator[StepBatch]:
        train = self._config.train
        rows = rows_of_rank(train.global_batch, train.micro_batch, ranks.rank, ranks.size)
        for step in range(first, train.steps):
            samples = step * train.global_batch + rows
            numbers = self._order.index(samples)
            cuts = [slice(start, start + train.micro_batch) for start in range(0, len(rows), train.micro_batch)]
            yield StepBatch(step, [self._train.batch(numbers[cut], samples[cut]) for cut in cuts])

    def validate(self, score: Score, ranks: Ranks, step: int) -> Record:
        return validate_examples(
            self._validation,
            score,
            ranks,
            batch=self._config.train.micro_batch,
            at_most=self._config.evaluation.examples,
        )

    def epochs(self, progress: Progress) -> dict[str, float]:
        return {"train": progress.step * self._config.train.global_batch / len(self._train)}

    def measures(self, loss: float, step: int) -> Record:
        return {}

    def changes_at(self, step: int) -> bool:
        return False

    def describe(self) -> Record:
        fingerprints = {"train": self._train.fingerprint, "validation": self._validation.fingerprint}
        return {"fingerprints": fingerprints} | ({"labels": self._labels} if self._labels else {})

    def place(self, sample: int) -> Record:
        [number] = self._order.index(np.array([sample]))
        return {"example": int(number), "epoch": sample // len(self._train)}

    def show(self, batch: Any, row: int) -> str:
        [number] = self._order.index(batch.indices[row : row + 1].numpy())
        return self._train.describe(int(number))


def validate_examples(
    examples: Examples, score: Score, ranks: Ranks, *, batch: int, at_most: int | None = None
) -> Record:
    """Means of the loss and of the measures over the targets of `examples`, or of `at_most`, spread evenly. Collective.

    Raises InputError where this rank cannot read an example.
    """
    count = min(len(examples), at_most or len(examples))
    numbers = np.arange(count, dtype=np.int64) * len(examples) // count
    sums: dict[str, Tensor] = {}
    # Ranks score equally many batches: one that has none left scores another's, which counts for nothing.
    for start in range(0, count, batch * ranks.size):
        mine = numbers[start + ranks.rank * batch :][:batch]
        read = examples.batch(chosen := mine if len(mine) else numbers[:1], -1 - chosen)
        with torch.no_grad():
            output = score(read)
        found = {"loss": output.losses, "targets": read.counts, **output.measures}
        for name, values in found.items():
            total = values.sum(dtype=torch.float64).to(ranks.device) * float(len(mine) > 0)
            sums[name] = sums[name] + total if name in sums else total
    for value in sums.values():
        ranks.sum_(value)
    targets = sums.pop("targets")
    return {name: float(value / targets) for name, value in sums.items()}
