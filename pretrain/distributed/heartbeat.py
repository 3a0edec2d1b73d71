"""The processes of a run watch over each other, so that the end of one is noticed and named by all.

Every rank keeps a connection to rank 0 and sends a beat over it now and then. A killed process's connection is closed
by its kernel at once; of a process, node or network that stands still, nothing is heard for `dead_rank` seconds. Rank 0
tells the others; of rank 0 itself, each learns by its own connection. Clocks of different hosts are never compared.

The store of the rendezvous does not serve here: requests to a stopped store wait for ever, and those to a closed one
print stack traces.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from pretrain.distributed.ending import end, print_stacks
from pretrain.distributed.rendezvous import LostRanks, Member, Met, name_ranks
from pretrain.errors import FAILED

GRACE_SECONDS = 5.0
"""After a verdict, the main thread has so long to end the process by itself: it may be stuck in a collective."""
LONGEST_INTERVAL = 2.0
"""Seconds between beats at most; a thousand ranks are then no load for rank 0."""


@dataclass(frozen=True)
class Verdict:
    """Why the run cannot go on."""

    text: str
    """One line."""
    hang: bool = False
    """Nobody has died: stacks tell more."""
    tell: bool = True
    """Whether this process prints it: one on each host does."""


@dataclass
class Peer:
    """A process at the other end of a connection."""

    member: Member
    connection: socket.socket | None = None
    received: bytes = b""
    silence: float = 0.0
    """Seconds since it was last heard."""
    doing: str = ""
    """What it is in."""
    left: bool = False
    """It has said that it ends and misses nothing."""
    gone: bool = False


class Heartbeat:
    """This process's part; a thread does the work.

    Args:
        rank: This process's.
        met: The processes and where rank 0 listens.
        dead_rank: Seconds of silence that make a rank dead.
    """

    def __init__(self, rank: int, met: Met, dead_rank: float) -> None:
        self.me, self._dead_rank = met.members[rank], dead_rank
        self.doing = "set-up"
        """What this process is in, for others to tell if it dies."""
        self._interval = min(LONGEST_INTERVAL, dead_rank / 5)
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._verdict: Verdict | None = None
        self._concluded, self._heard, self._leaving, self._all_left = (threading.Event() for _ in range(4))
        if met.listener is not None:
            self._peers = {member.rank: Peer(member) for member in met.members[1:]}
            met.listener.setblocking(False)
            self._selector.register(met.listener, selectors.EVENT_READ)
        else:
            self._peers = {0: Peer(met.members[0])}
            self._connect(met.address)
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def verdict(self) -> Verdict | None:
        """What happened to the others, for a process whose collective has just failed and which now ends.

        Waits for as long as silence needs to become one.
        """
        self._concluded.wait(self._dead_rank + 3 * self._interval)
        if self._verdict is not None:
            self._heard.set()
        return self._verdict

    def hang(self, doing: str, what: str) -> Verdict:
        """Tell all ranks that this one is stuck in `doing`; returns why the run ends: another may have been first."""
        self.doing = doing
        self._send_all({"doing": doing})
        return self._conclude(Verdict(what, hang=True))

    def fail(self, code: int, message: str) -> None:
        """Tell the others that this process ends for a reason of its own."""
        self._leaving.set()
        self._conclude(Verdict(f"{self.me} ended with exit code {code}: {message}"))

    def leave(self, timeout: float) -> None:
        """Say that this process ends well and wait until all do; until one is dead or `timeout` seconds at most."""
        self._leaving.set()
        self._send_all({"left": True})
        self._note_if_all_left()
        stop = time.monotonic() + timeout
        while time.monotonic() < stop and not self._all_left.wait(0.05) and not self._concluded.is_set():
            pass

    def _connect(self, address: tuple[str, int]) -> None:
        peer = self._peers[0]
        try:
            peer.connection = socket.create_connection(address, timeout=10)
        except OSError as error:
            host, port = address
            message = f"{peer.member} does not answer at {host}:{port}: {error.strerror or error}"
            raise LostRanks(message, tell=True) from None
        peer.connection.setblocking(False)
        self._selector.register(peer.connection, selectors.EVENT_READ, peer)
        self._send(peer, {"rank": self.me.rank, "token": self.me.token})

    # The thread.

    def _run(self) -> None:
        last, due = time.monotonic(), 0.0
        while not self._concluded.is_set():
            for key, _ in self._selector.select(self._interval / 2):
                if key.data is None:
                    self._accept(key.fileobj)
                else:
                    self._receive(key.fileobj, key.data)
            # A process that was stopped for a while must not take the others' silence for death.
            elapsed, last = min(time.monotonic() - last, self._interval), time.monotonic()
            for peer in self._peers.values():
                peer.silence += elapsed
                if peer.silence > self._dead_rank and not peer.gone:
                    self._found(peer, f"has given no sign for {self._dead_rank:g} s (watchdog.dead_rank)")
            if last >= due:
                due = last + self._interval
                self._send_all({"doing": self.doing})
        self._end_with_verdict()

    def _accept(self, listener: Any) -> None:
        with suppress(OSError):
            connection, _ = listener.accept()
            connection.setblocking(False)
            stranger = Peer(Member(-1, "", 0, ""), connection)
            self._selector.register(connection, selectors.EVENT_READ, stranger)

    def _receive(self, connection: Any, peer: Peer) -> None:
        try:
            data = connection.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(connection)
            connection.close()
            if peer.member.rank >= 0:
                self._found(peer, "is dead: killed, out of memory or crashed")
            return
        peer.silence = 0.0
        *lines, peer.received = (peer.received + data).split(b"\n")
        if lines and peer.member.rank < 0:
            hello, lines = lines[0], lines[1:]
            try:
                peer = self._welcome(peer, json.loads(hello))
            except (ValueError, KeyError, TypeError):
                self._selector.unregister(connection)
                connection.close()
                return
        for line in lines:
            self._take(peer, json.loads(line))

    def _take(self, peer: Peer, message: dict[str, Any]) -> None:
        peer.doing = message.get("doing", peer.doing)
        peer.left |= "left" in message
        if "verdict" in message:
            self._conclude(Verdict(**message["verdict"]), final=peer.member.rank == 0)
        if "all left" in message:
            self._all_left.set()
        self._note_if_all_left()

    def _welcome(self, stranger: Peer, hello: dict[str, Any]) -> Peer:
        """The rank that a new connection is of."""
        peer = self._peers[hello["rank"]]
        if peer.member.token != hello["token"]:
            raise ValueError("not of this run")
        assert stranger.connection is not None
        peer.connection, peer.received, peer.silence = stranger.connection, stranger.received, 0.0
        self._selector.modify(stranger.connection, selectors.EVENT_READ, peer)
        return peer

    def _found(self, peer: Peer, what: str) -> None:
        peer.gone = True
        if not peer.left and not self._all_left.is_set():
            last = f"; last heard of in {peer.doing}" if peer.doing else ""
            self._conclude(Verdict(f"{peer.member} {what}{last}"))
        elif peer.member.rank == 0:
            self._all_left.set()

    def _note_if_all_left(self) -> None:
        if self.me.rank == 0 and self._leaving.is_set() and all(p.left or p.gone for p in self._peers.values()):
            self._send_all({"all left": True})
            self._all_left.set()

    def _conclude(self, verdict: Verdict, final: bool = False) -> Verdict:
        """Have `verdict`, unless there is one, and pass it on; `final` as rank 0 has worded it."""
        with self._lock:
            if self._verdict is not None:
                return self._verdict
            if verdict.hang and not final:
                self._verdict = replace(verdict, text=f"{verdict.text}; {self._whereabouts()}")
            else:
                self._verdict = verdict
        if self.me.rank == 0:
            self._tell_all(self._verdict)
        elif not final:
            self._send_all({"verdict": vars(verdict)})
        self._concluded.set()
        return self._verdict

    def _tell_all(self, verdict: Verdict) -> None:
        told = {self.me.host}
        for peer in self._peers.values():
            tell = peer.connection is not None and not peer.gone and peer.member.host not in told
            told |= {peer.member.host} if tell else set()
            self._send(peer, {"verdict": vars(replace(verdict, tell=tell))})

    def _whereabouts(self) -> str:
        """What this process and those it knows of are in: on rank 0, all. The odd ones come first."""
        doing: dict[str, list[int]] = {self.doing: [self.me.rank]}
        for rank, peer in self._peers.items():
            if peer.doing:
                doing.setdefault(peer.doing, []).append(rank)
        return ", ".join(f"{name_ranks(doing[what])} in {what}" for what in sorted(doing, key=lambda w: len(doing[w])))

    def _send_all(self, message: dict[str, Any]) -> None:
        for peer in self._peers.values():
            self._send(peer, message)

    def _send(self, peer: Peer, message: dict[str, Any]) -> None:
        if peer.connection is not None and not peer.gone:
            with suppress(OSError):  # its end is noticed on receiving
                peer.connection.send(json.dumps(message).encode() + b"\n")

    def _end_with_verdict(self) -> None:
        assert self._verdict is not None
        time.sleep(GRACE_SECONDS)
        if self._leaving.is_set() or self._heard.is_set():
            return
        if self._verdict.tell:
            print(f"error: {self._verdict.text}", file=sys.stderr, flush=True)
        if self._verdict.hang:
            print_stacks(f"rank {self.me.rank}")
        end(FAILED, self._verdict.text)


_running: Heartbeat | None = None


def start_heartbeat(rank: int, met: Met, dead_rank: float) -> None:
    """Begin to watch and be watched. Once per process."""
    global _running
    _running = Heartbeat(rank, met, dead_rank)


def heartbeat() -> Heartbeat | None:
    """This process's; None before it has joined others, and where it is alone."""
    return _running
