"""outcome.json of a run directory: what became of the run. Launchers lose or change the exit codes of their ranks."""

from __future__ import annotations

import json
import os
import socket
import sys
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pretrain.errors import ABORTED, BAD_INPUT, DONE, FAILED, STOPPED
from pretrain.files import replace_text

OUTCOME_FILE = "outcome.json"

OUTCOMES = {DONE: "done", FAILED: "failed", BAD_INPUT: "bad_input", ABORTED: "aborted", STOPPED: "stopped"}


@dataclass(frozen=True)
class Outcome:
    """The last attempt's. Written by rank 0 or its supervisor."""

    outcome: str
    """``running``, ``restarting`` or, once it has ended, one of `OUTCOMES`."""
    attempt: int
    """Counts the starts of the run, from 1."""
    host: str
    pid: int
    """Of the process that will write again; where it is gone from `host`, it was killed."""
    started: str
    """ISO 8601, as is `ended`."""
    code: int | None = None
    """Exit code."""
    step: int | None = None
    """The newest step begun."""
    message: str | None = None
    ended: str | None = None

    def restarting(self, step: int | None, message: str) -> Outcome:
        """The attempt has failed, and this process, a supervisor, will begin another."""
        return replace(self, outcome="restarting", pid=os.getpid(), code=None, step=step, message=message, ended=None)

    def with_end(self, code: int, step: int | None, message: str | None) -> Outcome:
        """The attempt has ended with exit code `code`."""
        outcome = OUTCOMES.get(code, OUTCOMES[FAILED])
        return replace(self, outcome=outcome, code=code, step=step, message=message, ended=_now())


def next_attempt(run_dir: Path) -> Outcome:
    """What to write where this process begins an attempt."""
    earlier = read_outcome(run_dir)
    attempt = 1 if earlier is None else earlier.attempt + 1
    return Outcome("running", attempt, socket.gethostname(), os.getpid(), _now())


def read_outcome(run_dir: Path) -> Outcome | None:
    """None where there is nothing that can be read."""
    try:
        return Outcome(**json.loads((run_dir / OUTCOME_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write_outcome(run_dir: Path, outcome: Outcome) -> None:
    """A file system that refuses it is warned about, no more: the run itself may well go on."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        replace_text(run_dir / OUTCOME_FILE, json.dumps(asdict(outcome), indent=2) + "\n")
    except OSError as error:
        print(f"warning: {run_dir / OUTCOME_FILE} was not written: {error.strerror}", file=sys.stderr)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
