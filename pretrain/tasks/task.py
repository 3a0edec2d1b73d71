"""What training, validation and checkpoints know of a task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

if TYPE_CHECKING:  # bad input is not to wait for torch
    import torch
    from torch import Tensor, nn

    from pretrain.corpus.reader import StepReader
    from pretrain.distributed import Ranks
    from pretrain.progress import Progress
    from pretrain.tasks.objective import Objective

Record = dict[str, Any]
"""Values by name, JSON-able."""


class Batch(Protocol):
    """A micro-batch of samples."""

    @property
    def indices(self) -> Tensor:
        """(rows,) int64 global sample numbers."""

    def to(self, device: torch.device) -> Self: ...

    def target_counts(self) -> Tensor:
        """(rows,) int64: how many targets each row has."""

    def row_hashes(self) -> Iterator[int]:
        """xxh64 of everything that a row gives to the model."""


class TaskOutput(NamedTuple):
    # A tuple because DeepSpeed finds the tensors to hook in tuples, lists and dicts only.
    loss_sum: Tensor
    """Scalar to minimise, regularisation included: a sum over the batch's targets, divided by the step's targets."""
    losses: Tensor
    """(rows, N): the loss of each target without regularisation, 0 where there is none; or (rows, 1), a row's sum."""
    measures: dict[str, Tensor]
    """Like `losses`, by name: sums over targets of what is reported beside them. Empty where gradients are computed."""


Score = Callable[[Batch], TaskOutput]
"""An objective in evaluation mode."""


class TrainingData(Protocol):
    """What a run trains on and is validated on."""

    def reader(self, ranks: Ranks, progress: Progress) -> StepReader:
        """One rank's batches from the step after `progress`."""

    def validate(self, score: Score, ranks: Ranks, step: int) -> Record:
        """`loss` and other measures after `step` steps, over validation data. Collective.

        Ranks call `score` equally often. Raises InputError on every rank where one cannot read.
        """

    def epochs(self, progress: Progress) -> dict[str, float]:
        """How often each part of the data has been read; of streams, the whole times, on average."""

    def measures(self, loss: float, step: int) -> Record:
        """What a training loss at a step comes to in other units, such as bits per byte."""

    def changes_at(self, step: int) -> bool:
        """Whether a step reads other data than the one before, so that their losses are not to be compared."""

    def describe(self) -> Record:
        """What a checkpoint remembers of it; `fingerprints` by name must be the same when a run goes on."""

    def place(self, sample: int) -> Record:
        """Where a sample comes from, for people."""

    def show(self, batch: Any, row: int) -> str:
        """A row of a batch of its readers, for people: its text, or its label."""


class CostTable(NamedTuple):
    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


class Task(Protocol):
    """Everything about a run that depends on what it learns."""

    unit: str
    """What targets are called, in the plural: ``tokens``, ``images``, ..."""
    init_from: str | None
    """The model whose weights a new run starts with."""

    def problems(self, world_size: int) -> Iterator[str]:
        """What is wrong with a configuration beyond its schema, one line each. Nothing is created."""

    def doubts(self) -> Iterator[str]:
        """What may be a mistake and is let pass, one line each."""

    def open_data(self, ranks: Ranks) -> TrainingData:
        """Collective. Raises InputError on every rank."""

    def build(self) -> Objective:
        """Its model is on the CPU in fp32, with weights drawn from torch's generator."""

    def initialize(self, model: nn.Module) -> None:
        """Give a new model the weights that its configuration names, if any. Raises InputError."""

    def step_targets(self) -> int:
        """Targets of a step over all ranks, at most."""

    def step_flops(self) -> float:
        """FLOPs of a step over all ranks, forward and backward, at full size: what MFU counts."""

    def attention_channels(self) -> int:
        """Of a head of the latents' self-attention: decides which kernels serve."""

    def activation_bytes(self) -> int | None:
        """What the forward pass of a micro-batch keeps for its backward pass; None where that is not known."""

    def cost_tables(self) -> Iterator[CostTable]:
        """What else a dry run says of the costs."""
