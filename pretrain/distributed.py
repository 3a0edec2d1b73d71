"""The processes of a run: how they find each other, agree and leave."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from pretrain.errors import InputError

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(minutes=15)
"""How long a rank waits for the others before the run fails; rank 0 writes a checkpoint within it."""


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
        problem: str | None = None
        try:
            results.append(work())
        except InputError as error:
            problem = str(error)
        for found in self.gather(problem):
            if found is not None:
                raise RanksError(found)
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
    """Raised on every rank alike: it is enough if one of them tells."""


def join() -> Ranks:
    """Join the processes that RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT name; alone without them."""
    alone = "RANK" not in os.environ
    rank, size, local_rank = (int(os.environ.setdefault(k, v)) for k, v in _ALONE.items())
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=dist.HashStore() if alone else None,
            rank=rank,
            world_size=size,
            timeout=COLLECTIVE_TIMEOUT,
        )
    group = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT) if cuda else dist.group.WORLD
    assert group is not None
    return Ranks(rank, size, device, group)


_ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


def set_timeouts() -> None:
    """Give every process group the run's timeout: groups do not inherit the default group's."""
    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(COLLECTIVE_TIMEOUT, group)


def leave(code: int) -> NoReturn:
    """End this process with `code`, at once: gloo's threads abort some ordinary exits of processes that are done."""
    if dist.is_initialized():
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class StopRequest:
    """True once SIGTERM, SIGUSR1 or SIGINT has asked the process to end. A second SIGINT interrupts it at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._receive)

    def __bool__(self) -> bool:
        return self.received is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
