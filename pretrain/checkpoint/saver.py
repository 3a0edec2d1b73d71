"""Saving a run's state: every rank writes what it owns, rank 0 makes a checkpoint of it once all have."""

from __future__ import annotations

import json
import secrets
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.checkpoint.layout import (
    FORMAT,
    STATE,
    UNFINISHED,
    Piece,
    checkpoint_path,
    checkpoints_of,
    rank_file,
    step_of,
)
from pretrain.checkpoint.publishing import delete_unfinished, publish
from pretrain.checkpoint.retention import prune
from pretrain.checkpoint.snapshot import HostBuffer
from pretrain.checkpoint.writing import FileEntry, write_pieces, write_text
from pretrain.config import CheckpointSection
from pretrain.distributed import Ranks, RanksError
from pretrain.errors import FAILED
from pretrain.version import code_version

if TYPE_CHECKING:
    from pretrain.engine import Engine


class Saver:
    """Writes the checkpoints of a run and deletes those that are not to stay. All ranks must see the same `run_dir`.

    A save is `begin`, then `finish` once no rank is `writing` any more. Until `finish` has renamed the folder there is
    no new checkpoint. Whatever happens in between, the older ones stay as they are.
    """

    def __init__(
        self,
        run_dir: Path,
        section: CheckpointSection,
        ranks: Ranks,
        engine: Engine,
        saved_step: int = 0,
    ) -> None:
        """Collective. `saved_step`: of the checkpoint the run goes on from; those after it are taken for damaged."""
        self.run_dir, self.section, self.ranks, self.engine = run_dir, section, ranks, engine
        self.saved_step = saved_step
        """Of the newest whole checkpoint, 0 without one."""
        self.failures = 0
        """Saves that have failed in a row."""
        # A rank of an earlier attempt that is not quite dead must not write into this one's files.
        [self._attempt, *_] = ranks.gather(secrets.token_hex(4))
        self._damaged = {step for step in map(step_of, checkpoints_of(run_dir)) if step > saved_step}
        self._buffer = HostBuffer()
        # One thread: whatever it is given happens in order.
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._save: Save | None = None
        self._pruning: Future[None] = Future()
        self._pruning.set_result(None)
        if ranks.is_main and saved_step:
            # A disk that is full of old checkpoints refuses every save, after which they would go otherwise.
            self._prune_soon()

    @property
    def pending(self) -> bool:
        """Begun and not finished; the same on all ranks."""
        return self._save is not None

    @property
    def writing(self) -> bool:
        """Whether this rank is still at it."""
        return self._save is not None and not self._save.job.done()

    def begin(self, state: dict[str, Any], background: bool) -> None:
        """Start to save ``step-<state["step"]>``. All ranks call it after the same step, none pending.

        In the background, training may go on as soon as this returns: the rank's share of the state has been copied to
        host memory (12 bytes for each parameter the rank owns, kept for the next time). Otherwise the share is on the
        disk when this returns. What the file system refuses is told by `finish`.
        """
        assert self._save is None
        pieces: Sequence[Piece] = list(self.engine.pieces())
        if background:
            pieces = self._buffer.copy(pieces)
        # Put into words now, as training goes on changing it.
        text = json.dumps(self._surroundings() | state, indent=1) if self.ranks.is_main else None
        final = checkpoint_path(self.run_dir, state["step"])
        temporary = final.with_name(f"{UNFINISHED}{final.name}-{self._attempt}")
        job = self._thread.submit(write_share, temporary, self.ranks.rank, pieces, text)
        self._save = Save(state["step"], temporary, final, background, job)
        if not background:
            job.result()

    def wait(self) -> None:
        """Wait until this rank's thread neither writes nor deletes."""
        self._thread.submit(lambda: None).result()

    def finish(self) -> bool:
        """Make a checkpoint of what all ranks have written; whether there is a new one. Collective, none `writing`.

        A failure is a warning. Raises RanksError when `checkpoint.max_failures` saves in a row have failed.
        """
        assert self._save is not None
        save, self._save = self._save, None
        shares = self.ranks.gather(save.job.result())
        # The others wait for what rank 0 does here, as their next save may be of the same step.
        problem = self._publish(save, shares) if self.ranks.is_main else None
        [problem, *_] = self.ranks.gather(problem)
        if problem is not None:
            self._failed(save, problem)
            return False
        self.saved_step, self.failures = save.step, 0
        if self.ranks.is_main:
            self._damaged.discard(save.step)
            self._prune_soon()
            if not save.background:
                self._pruning.result()
        return True

    def _surroundings(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "adam_step": self.engine.adam_step,
            "shapes": self.engine.shapes,
            "code": asdict(code_version()),
            "world_size": self.ranks.size,
            "zero_stage": self.engine.stage,
        }

    def _publish(self, save: Save, shares: Sequence[Share]) -> str | None:
        problem = next((share.problem for share in shares if share.problem is not None), None)
        if problem is None:
            try:
                publish(save.temporary, save.final, {k: v for share in shares for k, v in share.files.items()})
            except OSError as error:
                problem = _reason(error, save.temporary)
        if problem is not None:
            shutil.rmtree(save.temporary, ignore_errors=True)
        return problem

    def _failed(self, save: Save, problem: str) -> None:
        self.failures += 1
        limit = self.section.max_failures
        newest = "there is no whole one yet"
        if self.saved_step:
            newest = f"the newest whole one is {checkpoint_path(self.run_dir, self.saved_step).name}"
        if self.failures >= limit:
            raise RanksError(
                f"run.dir: {limit} checkpoints in a row were not written (checkpoint.max_failures), the last, of step "
                f"{save.step}, because of {problem}; {newest}",
                FAILED,
            )
        if self.ranks.is_main:
            print(
                f"warning: checkpoint of step {save.step} was not written: {problem}; trying again, {newest}; "
                f"failure {self.failures} of {limit}",
                file=sys.stderr,
                flush=True,
            )

    def _prune_soon(self) -> None:
        # The one before was done ahead of the last save. Its result tells what was no failure of the file system.
        self._pruning.result()
        self._pruning = self._thread.submit(self._prune)

    def _prune(self) -> None:
        try:
            prune(self.run_dir, self.section, self._damaged)
        except OSError as error:
            reason = _reason(error, self.run_dir)
            print(f"warning: old checkpoints were not deleted: {reason}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Share:
    """What one rank has brought to the disk."""

    files: dict[str, FileEntry]
    problem: str | None = None
    """Why that is not all it should have."""


@dataclass(frozen=True)
class Save:
    """One that is under way."""

    step: int
    temporary: Path
    final: Path
    background: bool
    job: Future[Share]


def write_share(folder: Path, rank: int, pieces: Sequence[Piece], state: str | None) -> Share:
    """Write a rank's pieces into `folder`; rank 0's `state` too, which clears up after others before."""
    path = folder
    try:
        if state is not None:
            delete_unfinished(folder.parent, besides=folder.name)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / rank_file(rank)
        files = {path.name: write_pieces(path, pieces)}
        if state is not None:
            path = folder / STATE
            files[path.name] = write_text(path, state)
    except OSError as error:
        return Share({}, _reason(error, path))
    return Share(files)


def _reason(error: OSError, path: Path) -> str:
    # Opening names the file, writing does not.
    return f"{error.filename or path}: {error.strerror or error}"
