"""Numbered examples as training data: what is read when, on any number of ranks, and how it is validated."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.config import ExampleRunConfig
from pretrain.errors import InputError
from pretrain.progress import Progress
from pretrain.tasks.examples import ExampleBatch, ExampleData, sample_generator
from pretrain.tasks.task import TaskOutput

BATCH, MICRO_BATCH, STEPS, TRAINED, VALIDATED = 8, 2, 12, 29, 11


class Numbers:
    """Example n is the number n with a draw of its sample, and n % 3 targets."""

    def __init__(self, size: int) -> None:
        self.size, self.fingerprint = size, f"{size} numbers"

    def __len__(self) -> int:
        return self.size

    def batch(self, numbers: np.ndarray, samples: np.ndarray) -> ExampleBatch:
        drawn = [sample_generator(7, sample).standard_normal() for sample in samples.tolist()]
        return ExampleBatch(
            {"number": torch.from_numpy(numbers.copy()), "drawn": torch.tensor(drawn)},
            torch.from_numpy(numbers % 3),
            torch.from_numpy(samples.copy()),
        )

    def describe(self, number: int) -> str:
        return f"number {number}"


class OneOf:
    """A rank among others that all do the same."""

    device = torch.device("cpu")

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    def sum_(self, tensor: Tensor) -> None:
        pass


def data(**evaluation: int) -> ExampleData:
    train = {"steps": STEPS, "global_batch": BATCH, "micro_batch": MICRO_BATCH}
    config = ExampleRunConfig(task="image_classification", run={"dir": "unused"}, train=train, evaluation=evaluation)
    return ExampleData(config, Numbers(TRAINED), Numbers(VALIDATED))


def read(rank: int = 0, size: int = 1, step: int = 0) -> list[tuple[list[int], list[int], list[int]]]:
    """Samples, examples and hashes of each step."""
    with data().reader(OneOf(rank, size), Progress(step=step)) as reader:
        return [
            (
                [sample for batch in each.micro_batches for sample in batch.indices.tolist()],
                [number for batch in each.micro_batches for number in batch.tensors["number"].tolist()],
                each.sample_hashes(),
            )
            for each in reader
        ]


def test_every_example_is_read_once_an_epoch_in_another_order_each_time() -> None:
    steps = read()
    assert [sample for samples, _, _ in steps for sample in samples] == list(range(STEPS * BATCH))
    order = [number for _, numbers, _ in steps for number in numbers]
    epochs = [order[start : start + TRAINED] for start in range(0, len(order) - TRAINED, TRAINED)]
    assert len(epochs) == 3
    assert all(sorted(epoch) == list(range(TRAINED)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != sorted(epochs[2])


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_share_the_same_steps(size: int) -> None:
    whole = read()
    shares = [read(rank, size) for rank in range(size)]
    for step, expected in enumerate(whole):
        joined = zip(*(share[step] for share in shares), strict=True)
        assert tuple(list(chain.from_iterable(parts)) for parts in joined) == expected


def test_goes_on_where_it_was_stopped() -> None:
    assert read(step=5) == read()[5:]


def test_rows_that_differ_have_other_hashes() -> None:
    hashes = [value for _, _, values in read() for value in values]
    assert len(set(hashes)) == len(hashes) == STEPS * BATCH  # the same example again has another draw


def test_a_sample_draws_the_same_whatever_else_is_drawn() -> None:
    draws = {sample: sample_generator(7, sample).random(4).tolist() for sample in (-3, 0, 1, 2**40)}
    assert len({tuple(values) for values in draws.values()}) == len(draws)
    assert sample_generator(7, 1).random(4).tolist() == draws[1]
    assert sample_generator(8, 1).random(4).tolist() != draws[1]


@pytest.mark.parametrize("size, at_most", [(1, None), (3, None), (2, 5), (16, None)])
def test_validation_weighs_every_target_the_same(size: int, at_most: int | None) -> None:
    validated = data() if at_most is None else data(examples=at_most)
    scored: list[int] = []
    sums: list[float] = []

    class Adding(OneOf):
        def sum_(self, tensor: Tensor) -> None:
            sums.append(float(tensor))

    def score(batch: ExampleBatch) -> TaskOutput:
        numbers = batch.tensors["number"].double()
        losses = (numbers * batch.counts)[:, None]
        scored.append(len(batch.indices))
        assert (batch.indices == -1 - batch.tensors["number"]).all()
        return TaskOutput(losses.sum(), losses, {"square": losses * numbers[:, None]})

    calls = set()
    totals = np.zeros(3)
    for rank in range(size):
        scored.clear(), sums.clear()
        validated.validate(score, Adding(rank, size), 0)
        calls.add(len(scored))
        totals += sums
    assert len(calls) == 1  # whatever share of the examples a rank has
    count = min(VALIDATED, at_most or VALIDATED)
    chosen = [number * VALIDATED // count for number in range(count)]
    expected = [sum(n * (n % 3) for n in chosen), sum(n % 3 for n in chosen), sum(n * n * (n % 3) for n in chosen)]
    assert totals.tolist() == expected


def test_validation_tells_means_over_targets() -> None:
    def score(batch: ExampleBatch) -> TaskOutput:
        losses = (2.0 * batch.counts)[:, None]
        return TaskOutput(losses.sum(), losses, {"accuracy": losses / 4})

    assert data().validate(score, OneOf(), 0) == {"loss": 2.0, "accuracy": 0.5}


@pytest.mark.parametrize("train, validation, line", [
    (7, 1, "train.global_batch: 8 is more than the 7 training examples"),
    (8, 0, "data: there are no validation examples"),
])  # fmt: skip
def test_too_few_examples_are_refused(train: int, validation: int, line: str, tmp_path: Path) -> None:
    config = ExampleRunConfig(
        task="image_classification",
        run={"dir": tmp_path},
        train={"steps": 1, "global_batch": BATCH, "micro_batch": MICRO_BATCH},
    )
    with pytest.raises(InputError, match=line):
        ExampleData(config, Numbers(train), Numbers(validation))
