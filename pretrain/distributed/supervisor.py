"""Starts a rank's command again where it fails: one supervisor per rank, so that it is alike under every launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from pretrain.distributed.attempt import WORKER, read_step
from pretrain.distributed.stopping import SIGNALS, is_alive, launchers_above
from pretrain.errors import ABORTED, BAD_INPUT, DONE, FAILED, STOPPED
from pretrain.outcome import Outcome, next_attempt, read_outcome, write_outcome

FINAL = (DONE, BAD_INPUT, ABORTED, STOPPED)
FAILURES_OF_A_STEP = 3
"""So often in a row, and another restart would not help."""
LONGEST_PAUSE = 30.0
"""Seconds before a restart; the first is 1 s, each next one twice as long."""


class Supervisor:
    """Runs `command` as its worker, again and again, until it ends with a final code, one step fails
    `FAILURES_OF_A_STEP` times in a row, `max_restarts` are used up, the launcher is gone, or a signal asks for an end.

    Signals that ask a run to stop are passed on to the worker. Only the main thread can create it.
    """

    def __init__(self, command: Sequence[str], run_dir: Path, max_restarts: int) -> None:
        self._command, self._run_dir, self._max_restarts = command, run_dir, max_restarts
        self._rank = int(os.environ.get("RANK", "0"))
        self._launchers = launchers_above()
        self._earlier = read_outcome(run_dir)
        self._worker: subprocess.Popen[bytes] | None = None
        self._stop_signal: signal.Signals | None = None
        for number in SIGNALS:
            signal.signal(number, self._pass_on)

    def run(self) -> int:
        """The exit code of the last worker, or what stands for it."""
        failed_steps: list[int | None] = []
        while self._stop_signal is None:
            code, step = self._work()
            if code in FINAL or self._stop_signal is not None:
                return self._end(code, step)
            failed_steps.append(step)
            failure = self._describe_failure(code, step)
            if reason := self._reason_to_give_up(failed_steps):
                return self._give_up(f"{failure}; {reason}", step)
            self._announce_restart(f"{failure}; restart {len(failed_steps)} of {self._max_restarts}", step)
            self._pause(min(2.0 ** (len(failed_steps) - 1), LONGEST_PAUSE))
        return self._end(STOPPED, failed_steps[-1] if failed_steps else None)

    def _work(self) -> tuple[int, int | None]:
        """One worker from start to end: (exit code as a shell has it, the step it came to)."""
        with tempfile.NamedTemporaryFile(prefix="perceiver-worker-") as file:
            # With the lock on the run directory, which stays locked as long as one of both lives.
            environment = os.environ | {WORKER: file.name}
            self._worker = subprocess.Popen(self._command, env=environment, close_fds=False)
            if self._stop_signal is not None:  # came when there was nobody to pass it on to
                self._worker.send_signal(self._stop_signal)
            code = self._worker.wait()
            if self._stop_signal is not None and code == -self._stop_signal:
                return STOPPED, None  # it could not handle signals yet: nothing was done that could be lost
            return code if code >= 0 else 128 - code, read_step(Path(file.name))

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._stop_signal = signal.Signals(number)
        if self._worker is not None:
            self._worker.send_signal(number)

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._stop_signal is None:
            time.sleep(0.1)

    def _describe_failure(self, code: int, step: int | None) -> str:
        where = "before its first step" if step is None else f"in step {step}"
        outcome = read_outcome(self._run_dir)
        assert self._worker is not None
        if outcome is not None and outcome.pid == self._worker.pid and outcome.message is not None:
            return f"rank {self._rank} failed {where} ({outcome.message})"
        if code - 128 in list(signal.Signals):
            return f"rank {self._rank} failed {where}, killed ({signal.Signals(code - 128).name})"
        return f"rank {self._rank} failed {where} with code {code}"

    def _reason_to_give_up(self, failed_steps: Sequence[int | None]) -> str | None:
        """Why there is no restart after these failures, or None."""
        for launcher in self._launchers:
            if not is_alive(launcher):
                return f"not started again, as the launcher (pid {launcher.pid}) is gone"
        step, last = failed_steps[-1], failed_steps[-FAILURES_OF_A_STEP:]
        if len(last) == FAILURES_OF_A_STEP and len(set(last)) == 1:
            look = f": python pretrain/replay.py --run {self._run_dir} --step {step}" if step is not None else ""
            return f"given up, as it was the third time in a row{look}"
        if len(failed_steps) > self._max_restarts:
            return f"given up after {self._max_restarts} restart{'' if self._max_restarts == 1 else 's'}"
        return None

    def _announce_restart(self, message: str, step: int | None) -> None:
        self._say(f"warning: {message}")
        self._record(lambda outcome: outcome.restarting(step, message))

    def _give_up(self, message: str, step: int | None) -> int:
        self._say(f"error: {message}")
        self._record(lambda outcome: outcome.with_end(FAILED, step, message))
        return FAILED

    def _end(self, code: int, step: int | None) -> int:
        message = self._stop_signal.name if self._stop_signal is not None else None
        self._record(lambda outcome: self._ended(outcome, code, step, message))
        return code

    def _record(self, change: Callable[[Outcome], Outcome]) -> None:
        if self._rank == 0:
            outcome = read_outcome(self._run_dir)
            if outcome is None or outcome == self._earlier:  # no worker has come so far as to begin an attempt
                outcome = next_attempt(self._run_dir)
            write_outcome(self._run_dir, change(outcome))

    def _ended(self, outcome: Outcome, code: int, step: int | None, message: str | None) -> Outcome:
        if outcome.ended is not None and self._worker is not None and outcome.pid == self._worker.pid:
            return outcome  # the worker has said so itself, and knows more
        return outcome.with_end(code, step, message)

    def _say(self, text: str) -> None:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # the others of its node have the same to say
            print(text, file=sys.stderr, flush=True)
