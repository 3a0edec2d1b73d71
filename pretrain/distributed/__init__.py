"""The processes of a run: how they find each other, agree, watch over each other and leave."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pretrain.distributed.stopping import StoppedEarly, StopRequest

if TYPE_CHECKING:
    from pretrain.distributed.joining import join, set_timeouts
    from pretrain.distributed.leaving import end_with, leave, report_failure
    from pretrain.distributed.ranks import Ranks, RanksError
    from pretrain.distributed.rendezvous import LostRanks
    from pretrain.distributed.watchdog import Watchdog

__all__ = [
    "LostRanks",
    "Ranks",
    "RanksError",
    "StopRequest",
    "StoppedEarly",
    "Watchdog",
    "end_with",
    "join",
    "leave",
    "report_failure",
    "set_timeouts",
]

_NEED_TORCH = {
    "LostRanks": "rendezvous",
    "Ranks": "ranks",
    "RanksError": "ranks",
    "Watchdog": "watchdog",
    "end_with": "leaving",
    "join": "joining",
    "leave": "leaving",
    "report_failure": "leaving",
    "set_timeouts": "joining",
}


def __getattr__(name: str) -> Any:
    # A supervisor, and a process that notes requests to stop from its start on, cannot wait for torch.
    if name in _NEED_TORCH:
        return getattr(import_module(f"{__name__}.{_NEED_TORCH[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
