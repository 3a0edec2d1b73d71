"""How a process becomes a rank of a run."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from pretrain.config import WatchdogSection
from pretrain.distributed.heartbeat import start_heartbeat
from pretrain.distributed.ranks import Ranks
from pretrain.distributed.rendezvous import meet
from pretrain.distributed.stopping import StopRequest

_ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
_MARGIN_SECONDS = 60.0

_timeout = distributed_c10d.default_pg_timeout


def join(watchdog: WatchdogSection, stop: StopRequest | None = None) -> Ranks:
    """Join the processes that RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT name; alone without them.

    From then on the ranks watch over each other. A process that has joined already gets the same place again.

    Raises:
        LostRanks: Some did not come within `watchdog.setup` seconds.
        StoppedEarly: `stop`, or another rank's, became true while ranks were waited for.
        InputError: MASTER_PORT is taken by another process.
    """
    rank, size, local_rank = (int(os.environ.setdefault(k, v)) for k, v in _ALONE.items())
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if not dist.is_initialized():
        if cuda:
            torch.cuda.set_device(device)
        store = _find_others(rank, size, watchdog, stop) if size > 1 else dist.HashStore()
        dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=rank, world_size=size, timeout=_timeout)
    group = dist.new_group(backend="gloo", timeout=_timeout) if cuda else dist.group.WORLD
    assert group is not None
    return Ranks(rank, size, device, group)


def _find_others(rank: int, size: int, watchdog: WatchdogSection, stop: StopRequest | None) -> dist.Store:
    global _timeout
    # Heartbeat and watchdog end what hangs, and say why; a collective's own timeout is only to come after them.
    _timeout = timedelta(seconds=max(watchdog.setup, watchdog.step, watchdog.save) + _MARGIN_SECONDS)
    met = meet(rank, size, watchdog.setup, stop)
    start_heartbeat(rank, met, watchdog.dead_rank)
    met.store.set_timeout(_timeout)
    return met.store


def set_timeouts() -> None:
    """Give every process group the run's timeout: groups do not inherit the default group's."""
    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(_timeout, group)
