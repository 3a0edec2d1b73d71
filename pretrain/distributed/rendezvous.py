"""How the processes of a run find each other, and who is missing where they do not.

Rank 0, or the launcher, serves a key-value store at MASTER_ADDR:MASTER_PORT. Every process announces itself there, and
rank 0 answers with the list of all. A process goes on only where that list has itself, not an earlier process of the
same rank: so a restarted rank cannot meet a rank 0 of the run before, nor what that has left in a launcher's store.
"""

from __future__ import annotations

import ipaddress
import json
import math
import os
import socket
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from pretrain.distributed.stopping import StoppedEarly, StopRequest
from pretrain.errors import InputError

POLL_SECONDS = 0.2
TELL_SECONDS = 30.0
"""A process that is asked to stop before it has found the others looks for them so long, to tell them."""
STORE_TIMEOUT = timedelta(seconds=60)


class LostRanks(Exception):
    """The run cannot go on for what became of other ranks; the message, one line, names them."""

    def __init__(self, message: str, tell: bool) -> None:
        super().__init__(message)
        self.tell = tell
        """Whether this process is to say so, as no other does."""


@dataclass(frozen=True)
class Member:
    """A process of the run, unlike any other that ever had its rank."""

    rank: int
    host: str
    pid: int
    token: str

    def __str__(self) -> str:
        return f"rank {self.rank} (host {self.host}, pid {self.pid})"


@dataclass(frozen=True)
class Met:
    """What comes of a rendezvous."""

    store: dist.Store
    """Of this set of processes alone."""
    members: list[Member]
    """By rank."""
    address: tuple[str, int]
    """Where rank 0 listens for heartbeats."""
    listener: socket.socket | None
    """Rank 0's."""


def meet(rank: int, size: int, setup: float, stop: StopRequest | None) -> Met:
    """Find the other `size` - 1 processes of the run within `setup` seconds. Collective.

    Raises:
        LostRanks: Some have not come.
        StoppedEarly: A rank was asked to stop meanwhile.
        InputError: MASTER_PORT is taken by another process.
    """
    me = Member(rank, socket.gethostname(), os.getpid(), uuid.uuid4().hex)
    waiting = _Waiting(setup, stop)
    if rank == 0:
        return _receive(me, size, waiting)
    while True:
        try:
            return _attend(me, size, _connect(waiting), waiting)
        except dist.DistError:
            # Rank 0 has ended, and may be started again.
            waiting.pause(None, "", [0])


class _Waiting:
    """What ends waiting: time, a request to stop, another rank's word."""

    def __init__(self, setup: float, stop: StopRequest | None) -> None:
        self.setup, self.stop = setup, stop
        self.deadline = time.monotonic() + setup
        self._tell_until = math.inf

    def pause(self, store: dist.Store | None, meeting: str, absent: list[int]) -> None:
        """Wait a little for the ranks in `absent`; raises what ends the waiting, on all ranks that know of `store`."""
        if store is not None and store.check([f"{meeting}/decision"]):
            _heed(json.loads(store.get(f"{meeting}/decision")), tell=False)
            store = None  # all had met; if this process is not among them, there will be another meeting
        if self.stop:
            self._tell_until = min(self._tell_until, time.monotonic() + TELL_SECONDS)
        if self.stop and (store is not None or time.monotonic() > self._tell_until):
            end = {"stopped": True, "why": f"stopped before the first step ({self.stop.reason})"}
        elif time.monotonic() > self.deadline:
            end = {"stopped": False, "why": f"{name_ranks(absent)} not there after {self.setup:g} s (watchdog.setup)"}
        else:
            time.sleep(POLL_SECONDS)
            return
        if store is None:
            _heed(end, tell=True)
        else:
            decision = _decide(store, meeting, end)
            time.sleep(5 * POLL_SECONDS)  # the store may be this process's own, and others still have to read it
            _heed(decision, tell=decision == end)


def _decide(store: dist.Store, meeting: str, decision: dict[str, Any]) -> dict[str, Any]:
    """What becomes of a meeting: who comes first decides for all, be it that all are there or that it ends."""
    return json.loads(store.compare_set(f"{meeting}/decision", "", json.dumps(decision)))


def _heed(decision: dict[str, Any], tell: bool) -> None:
    if "why" in decision:
        raise StoppedEarly(decision["why"]) if decision["stopped"] else LostRanks(decision["why"], tell)


def _receive(me: Member, size: int, waiting: _Waiting) -> Met:
    """Rank 0's part."""
    store = _serve()
    listener = _listen()
    meeting = uuid.uuid4().hex
    store.set("meeting", meeting)
    absent = list(range(1, size))
    while absent := [rank for rank in absent if not store.check([f"{meeting}/here/{rank}"])]:
        waiting.pause(store, meeting, absent)
    announced = (json.loads(store.get(f"{meeting}/here/{rank}")) for rank in range(1, size))
    members = [me, *(Member(**member) for member in announced)]
    address = (_own_address(), listener.getsockname()[1])
    everyone = {"members": [asdict(member) for member in members], "address": address}
    _heed(_decide(store, meeting, everyone), tell=False)
    return Met(dist.PrefixStore(meeting, store), members, address, listener)


def _attend(me: Member, size: int, store: dist.Store, waiting: _Waiting) -> Met:
    """Any other rank's part; raises DistError if the store goes away meanwhile."""
    meeting = ""
    while True:
        if store.check(["meeting"]) and (now := store.get("meeting").decode()) != meeting:
            meeting = now
            store.set(f"{meeting}/here/{me.rank}", json.dumps(asdict(me)))
        if meeting and store.check([f"{meeting}/decision"]):
            decision = json.loads(store.get(f"{meeting}/decision"))
            _heed(decision, tell=False)
            members = [Member(**member) for member in decision["members"]]
            if members[me.rank] == me:
                host, port = decision["address"]
                host = os.environ["MASTER_ADDR"] if ipaddress.ip_address(host).is_loopback else host
                return Met(dist.PrefixStore(meeting, store), members, (host, port), None)
        absent = [rank for rank in range(1, size) if meeting and not store.check([f"{meeting}/here/{rank}"])]
        waiting.pause(store if meeting else None, meeting, absent or [0])


def _serve() -> dist.Store:
    """The store, served by this process unless the launcher does."""
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    deadline = time.monotonic() + 10
    while True:
        try:
            store = dist.TCPStore(
                host, port, None, not served, STORE_TIMEOUT, wait_for_workers=False, multi_tenant=True
            )
            return dist.PrefixStore("perceiver", store)
        except dist.DistNetworkError:
            # Of a process that has just ended, the port may still be held for a moment.
            if time.monotonic() > deadline:
                raise InputError(f"MASTER_PORT: {port} on {host} cannot be used; choose another") from None
            time.sleep(1)


def _connect(waiting: _Waiting) -> dist.Store:
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    while True:
        # The store's own attempts to connect hear no signal and print stack traces.
        with suppress(OSError):
            socket.create_connection((host, port), timeout=5).close()
            break
        waiting.pause(None, "", [0])
    store = dist.TCPStore(host, port, None, False, STORE_TIMEOUT, wait_for_workers=False)
    return dist.PrefixStore("perceiver", store)


def _listen() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, backlog=4096, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=4096)


def _own_address() -> str:
    """This host's address on its way to MASTER_ADDR; a loopback address where it is MASTER_ADDR itself."""
    family, kind, _, _, address = socket.getaddrinfo(os.environ["MASTER_ADDR"], 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)
        return probe.getsockname()[0]


def name_ranks(ranks: list[int]) -> str:
    """``rank 3``, or ``ranks 0-2, 5``."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and spans[-1][1] == rank - 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    names = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
    return f"rank {names}" if len(ranks) == 1 else f"ranks {names}"
