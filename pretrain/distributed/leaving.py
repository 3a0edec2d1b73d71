"""How a rank ends, well or not."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

import torch.distributed as dist

from pretrain.distributed.ending import end, within
from pretrain.distributed.heartbeat import Verdict, heartbeat
from pretrain.distributed.ranks import RanksError
from pretrain.distributed.rendezvous import LostRanks
from pretrain.distributed.stopping import SIGNALS, StoppedEarly
from pretrain.errors import BAD_INPUT, FAILED, STOPPED, InputError

MEETING_SECONDS = 120.0
"""Ranks wait for each other at the end: launchers kill the rest where one has ended."""
DESTROY_SECONDS = 10.0


def end_with(work: Callable[[], tuple[int, str]]) -> NoReturn:
    """Do this rank's share of some `work`, then `leave` with the code and line it returns, or with what it raises."""
    is_first_rank = os.environ.get("RANK", "0") == "0"
    try:
        code, message = work()
    except InputError as error:
        code, message = error.code, str(error)
        if is_first_rank or not isinstance(error, RanksError):  # which is the same on all ranks
            print(f"error: {error}", file=sys.stderr)
    except StoppedEarly as stopped:
        code, message = STOPPED, str(stopped)
        if is_first_rank:
            print(message)
    except BaseException as error:
        code, message = FAILED, report_failure(error)
    leave(code, message)


def leave(code: int, message: str = "") -> NoReturn:
    """End this process with `code`; `message` is the line in which it has said why, where that is a failure."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    beats = heartbeat()
    if code in (FAILED, BAD_INPUT):
        if beats is not None:
            beats.fail(code, message)
    else:
        if beats is not None:
            beats.leave(MEETING_SECONDS)
        if dist.is_initialized():
            within(DESTROY_SECONDS, dist.destroy_process_group)
    end(code, message)


def report_failure(error: BaseException) -> str:
    """Tell on stderr why this process fails with `error`, and return it in one line.

    Where a collective has failed because of another rank, that is what is told, on each host once. It may take
    `watchdog.dead_rank` seconds until it is known.
    """
    if isinstance(error, LostRanks):
        text, tell = str(error), error.tell
    else:
        verdict = _verdict(error)
        if verdict is None:
            traceback.print_exception(error)
            return traceback.format_exception_only(error)[-1].strip()
        text, tell = verdict.text, verdict.tell
    if tell:
        print(f"error: {text}", file=sys.stderr, flush=True)
    return text


def _verdict(error: BaseException) -> Verdict | None:
    beats = heartbeat()
    # What collectives raise has no type of its own.
    collective = isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)
    return beats.verdict() if beats is not None and collective else None
