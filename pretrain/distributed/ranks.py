"""This process's place among the processes of a run, and how they agree."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.errors import BAD_INPUT, InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's place among the processes of the run."""

    rank: int
    size: int
    device: torch.device
    group: dist.ProcessGroup
    """Gloo: carries small agreements between hosts without waiting for a GPU's queue."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Each value added up over all ranks. Collective."""
        return self.sum_(torch.tensor(values, dtype=torch.float64)).tolist()

    def sum_(self, tensor: Tensor) -> Tensor:
        """`tensor` (on the CPU) added up over all ranks, in place. Collective."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def max(self, value: float) -> float:
        """The largest of all ranks' values. Collective."""
        tensor = torch.tensor(value, dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.group)
        return tensor.item()

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank. Collective."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value, group=self.group)
        return values

    def together(self, work: Callable[[], T]) -> T:
        """What `work` returns on this rank; where it raises InputError on any, all raise the first such. Collective."""
        results: list[T] = []
        problem: tuple[str, int] | None = None
        try:
            results.append(work())
        except InputError as error:
            problem = str(error), error.code
        for found in self.gather(problem):
            if found is not None:
                raise RanksError(*found)
        return results[0]

    def while_waiting(self, work: Callable[[], None]) -> None:
        """Rank 0 does `work` while the others wait, however long it takes; its InputError is everyone's. Collective."""
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(work) if self.is_main else None
            # A look now and then keeps every single wait far below the collectives' timeout.
            while self.max(job is not None and bool(wait([job], timeout=30).not_done)):
                pass
        self.together(job.result if job is not None else lambda: None)


class RanksError(InputError):
    """Raised on every rank alike: it is enough if one of them tells. `code` is what the run ends with."""

    def __init__(self, message: str, code: int = BAD_INPUT) -> None:
        super().__init__(message)
        self.code = code
