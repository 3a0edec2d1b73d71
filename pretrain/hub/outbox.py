"""The folder ``hub`` of a run: exported checkpoints on their way to the Hub."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pretrain.checkpoint import checkpoint_path, checkpoints_of, step_of
from pretrain.config import HubSection
from pretrain.errors import Unavailable
from pretrain.hub.record import HUB_FOLDER, Upload, exported_steps, read_uploads, wanted, write_uploads
from pretrain.run_lock import hold_run


class Parcel(NamedTuple):
    """An exported checkpoint, and where it goes."""

    step: int
    revision: str
    folder: Path


class Outbox:
    """What of a run waits, and what has been sent. One process at a time has it, which deletes what others left half.

    Args:
        last_step: Of the run; its checkpoint also becomes ``main``.
    """

    def __init__(self, run_dir: Path, section: HubSection, last_step: int) -> None:
        """Raises Unavailable where another process has it."""
        self.section = section
        self._run_dir, self._last = run_dir, last_step
        self._folder = run_dir / HUB_FOLDER
        try:
            hold_run(self._folder)
        except Unavailable as error:
            raise Unavailable(f"{run_dir}: another process uploads its checkpoints; wait for its end") from error
        for unfinished in self._folder.glob(".*-step-*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        self._sent = read_uploads(run_dir)
        self._drop_sent()  # by the one before, had it not been killed

    def due(self) -> list[int]:
        """The steps whose checkpoints are to be exported, the newest first."""
        existing = {step_of(path) for path in checkpoints_of(self._run_dir)}
        waiting = set(self.waiting())
        sent = {upload.step for upload in self._sent if upload.repo == self.section.repo}
        steps = wanted(existing | waiting | sent, self.section.every, self._last)
        return sorted((step for step in steps & existing - waiting if self._missing(step)), reverse=True)

    def waiting(self) -> list[int]:
        """The steps of the exported checkpoints, the newest first."""
        return exported_steps(self._run_dir)

    def parcels(self) -> list[Parcel]:
        """What is to be sent, the newest first: should time run out, the newest is what people want."""
        return [Parcel(step, revision, self._path(step)) for step in self.waiting() for revision in self._missing(step)]

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step}"

    def export(self, step: int) -> None:
        """Have the checkpoint of `step` wait, whatever becomes of the checkpoint.

        Raises `InputError` or OSError where it is damaged or deleted meanwhile, or the disk refuses.
        """
        # They take seconds to import: most of a run's time there is nothing to export.
        from rich.console import Console

        from pretrain.hf_export import export
        from pretrain.release import open_release
        from pretrain.trained_run import TrainedRun

        section = self.section
        export(
            open_release(TrainedRun.find(checkpoint_path(self._run_dir, step))),
            self._path(step),
            name=section.repo,
            loaded_as=section.repo,
            dtype=section.dtype,
            with_code=section.with_code,
            console=Console(quiet=True),
        )

    def sent(self, parcel: Parcel, url: str) -> None:
        """Note that it has arrived, and forget a folder that has arrived everywhere. Raises OSError."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._sent.append(Upload(self.section.repo, parcel.step, parcel.revision, url, now))
        self._drop_sent()  # first: a full disk refuses the record, and this makes room
        write_uploads(self._run_dir, self._sent)

    def drop(self, step: int) -> None:
        """Raises OSError."""
        # Renamed first: a half-deleted export must not look like a whole one.
        os.rename(folder := self._path(step), doomed := folder.with_name(f".gone-{folder.name}"))
        shutil.rmtree(doomed, ignore_errors=True)

    def _drop_sent(self) -> None:
        for step in self.waiting():
            if not self._missing(step):
                self.drop(step)

    def _missing(self, step: int) -> list[str]:
        """The revisions that a checkpoint has not reached."""
        revisions = [f"step-{step}", *(["main"] if step == self._last else [])]
        reached = {upload.revision for upload in self._sent if (upload.repo, upload.step) == (self.section.repo, step)}
        return [revision for revision in revisions if revision not in reached]
