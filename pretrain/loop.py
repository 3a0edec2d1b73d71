"""Training: the step, and what happens around it."""

from __future__ import annotations

import dataclasses
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pretrain.checkpoint import Saver, newest_whole, restore_checkpoint
from pretrain.config import RunConfig
from pretrain.corpus import StepBatch
from pretrain.corpus.reader import StepReader
from pretrain.distributed import Ranks, RanksError, StopRequest, Watchdog, join
from pretrain.distributed.attempt import report_step
from pretrain.distributed.watchdog import Limit
from pretrain.engine import Engine
from pretrain.errors import DONE, STOPPED, InputError, TrainingAborted
from pretrain.progress import Progress, read_progress
from pretrain.recording import Recorder
from pretrain.report import write_report
from pretrain.saving import Saving
from pretrain.stability import StabilityGuard
from pretrain.startup import banner, build_objective, open_data
from pretrain.tasks import open_task
from pretrain.tasks.task import Task, TrainingData
from pretrain.training_step import count_targets, guarded_step
from pretrain.validation import Interrupted, Validator


def train(config: RunConfig, stop: StopRequest) -> int:
    """Take the run to `config.train.steps`, from its newest whole checkpoint if it has one; returns the exit code.

    Every process of the run calls it, then ends by `pretrain.distributed.leave`.

    Raises:
        InputError: Data, checkpoints or the run directory cannot be used.
        StoppedEarly: A rank was asked to stop before all had found each other.
        TrainingAborted: See `StabilityGuard.verdict`.
    """
    with Watchdog(config.watchdog) as watchdog:
        ranks = join(config.watchdog, stop)
        watchdog.enter("set-up: opening the data", "setup")
        task = open_task(config)
        data = open_data(task, ranks)
        watchdog.enter("set-up: looking for a whole checkpoint", "setup")
        checkpoint = newest_whole(config.run.dir, ranks)
        progress = ranks.together(partial(read_progress, checkpoint, data.describe()["fingerprints"]))
        if progress.is_done(config.train.steps):
            _say(ranks, f"already done: {checkpoint} has {progress.step} of {config.train.steps} steps")
            return DONE

        watchdog.enter("set-up: building the model", "setup")
        engine = Engine(build_objective(config, checkpoint), config, ranks)
        if checkpoint is not None:
            watchdog.enter("set-up: restoring the checkpoint", "setup")
            restore_checkpoint(checkpoint, engine)
        _say(ranks, banner(config, task, ranks, engine, progress, checkpoint))
        with ranks.together(partial(data.reader, ranks, progress)) as reader:
            run = Run(config, task, data, ranks, engine, reader, progress, stop, watchdog)
            with closing(run.recorder):
                code = run.fit()
        if code == DONE and ranks.is_main:
            _report(config.run.dir)
        return code


class Agreement(NamedTuple):
    """What all ranks know before a step."""

    targets: int
    """In its global batch."""
    must_end: bool
    """A rank was asked to stop, or could not read its share of the batch."""
    writing: bool
    """A rank still writes its share of a checkpoint in the background."""
    save_due: bool


class Run:
    """One process's share of a training run."""

    def __init__(
        self,
        config: RunConfig,
        task: Task,
        data: TrainingData,
        ranks: Ranks,
        engine: Engine,
        reader: StepReader,
        progress: Progress,
        stop: StopRequest,
        watchdog: Watchdog,
    ) -> None:
        self.config, self.data, self.ranks, self.engine = config, data, ranks, engine
        self.reader, self.progress, self.stop, self.watchdog = reader, progress, stop, watchdog
        self.recorder = Recorder(config, task, data, ranks, progress)
        self.guard = StabilityGuard(config.stability, progress.stability)
        self.validator = Validator(data, ranks, engine, lambda: bool(stop), self._watch)
        saver = Saver(config.run.dir, config.checkpoint, ranks, engine, saved_step=progress.step)
        self.saving = Saving(config.checkpoint, saver, self._state, watchdog)
        self._limit: Limit = "setup"

    def fit(self) -> int:
        """Take the remaining steps; returns the exit code."""
        config, progress = self.config, self.progress
        self.engine.train()
        if self._due(config.evaluation.every) and not progress.is_validated and self._validate():
            self._save(anew=True)
        while progress.step < config.train.steps:
            batch = self._read()
            agreed = self._agree(batch)
            self._watch_saving()
            self.saving.tend(writing=agreed.writing, due=agreed.save_due)
            if agreed.must_end:
                return self._stop(batch)
            assert isinstance(batch, StepBatch)
            self._take(batch, agreed.targets)
            self._limit = "step"
            if (why := self.guard.verdict(progress.step, config.run.dir)) is not None:
                self._watch_saving()
                self.saving.settle()
                raise TrainingAborted(why)
            if self._due(config.evaluation.every):
                self._validate()
            self.saving.after_step(progress.step)
        self._save()
        return DONE if progress.is_validated else self._stopped()

    def _take(self, batch: StepBatch, tokens: int) -> None:
        """One step: gradients, update, record."""
        config, progress = self.config, self.progress
        report_step(progress.step + 1)
        self._watch("gradients and update")
        started = time.perf_counter()
        result = guarded_step(
            self.engine, batch, tokens, config, self.guard, other_data=self.data.changes_at(batch.step)
        )
        progress.count(result.loss, tokens, applied=result.problem is None)
        progress.data_state = batch.state
        self.recorder.took(tokens, time.perf_counter() - started, batch.wait)
        if result.problem is not None:
            self.recorder.skipped(result, batch)
        if self._due(config.logging.every):
            self.recorder.trained(result, batch, self._joined())

    def _read(self) -> StepBatch | InputError | None:
        """None where this rank was asked to stop while data stalls."""
        self._watch("reading data")
        try:
            return self.reader.next_unless(lambda: bool(self.stop))
        except InputError as error:
            return error

    def _agree(self, batch: StepBatch | InputError | None) -> Agreement:
        """Collective."""
        self._watch("meeting the other ranks")
        # One exchange between hosts per step serves all, and does not wait for the GPU.
        read = batch if isinstance(batch, StepBatch) else None
        targets = 0 if read is None else count_targets(read.micro_batches)
        mine = (
            targets,
            bool(self.stop) or read is None,
            self.saving.is_writing,
            self.ranks.is_main and self.saving.is_due,
        )
        tokens, ends, writing, due = self.ranks.sum(*mine)
        return Agreement(int(tokens), ends > 0, writing > 0, due > 0)

    def _watch(self, doing: str) -> None:
        # Compiling and warming up belong to the first step of a process.
        self.watchdog.enter(f"step {self.progress.step + 1}: {doing}", self._limit)

    def _watch_saving(self) -> None:
        self.watchdog.enter(f"saving, after step {self.progress.step}", "save")

    def _due(self, every: int) -> bool:
        step = self.progress.step
        return step == self.config.train.steps or (every > 0 and step > 0 and step % every == 0)

    def _validate(self) -> bool:
        """Whether it was not interrupted; a run that is asked to stop meanwhile does it when it goes on. Collective."""
        self._watch("validation")
        try:
            scores = self.validator(self.progress.step)
        except Interrupted:
            return False
        self.progress.validation = self.recorder.validated(scores)
        return True

    def _save(self, *, anew: bool = False) -> None:
        self._watch_saving()
        self.saving.save(self.progress.step, anew=anew)

    def _stop(self, batch: StepBatch | InputError | None) -> int:
        """End before the step of `batch`, because a rank was asked to or has no data. Collective."""
        if self.progress.step > 0:
            self._save()
        self.ranks.together(partial(_complain, batch))
        return self._stopped()

    def _stopped(self) -> int:
        step = self.progress.step
        when = f"on request after step {step}" if step > 0 else "before the first step"
        _say(self.ranks, f"stopped {when}: run the same command to go on")
        return STOPPED

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds beside tensors. Collective."""
        self.recorder.sync()
        progress = self._joined()
        progress.seconds, progress.stability = self.recorder.seconds, self.guard.state()
        return dataclasses.asdict(progress) | {
            "config": self.config.model_dump(mode="json"),
            "data": self.data.describe(),
        }

    def _joined(self) -> Progress:
        """Progress with every rank's share of the data's state. Collective."""
        shares = [share for share in self.ranks.gather(self.progress.data_state) if share is not None]
        places = {stream: place for share in shares for stream, place in share.items()}
        if len({place["data"] for place in places.values()}) > 1:
            raise RanksError("data.stream: ranks read different files; name a commit as data.stream.revision")
        return dataclasses.replace(self.progress, data_state=places or None)


def _report(run_dir: Path) -> None:
    try:
        print(f"report          {write_report(run_dir)}", flush=True)
    except (OSError, InputError) as error:
        print(f"warning: the report was not written: {error}", file=sys.stderr, flush=True)


def _complain(batch: StepBatch | InputError | None) -> None:
    if isinstance(batch, InputError):
        raise batch


def _say(ranks: Ranks, text: str) -> None:
    if ranks.is_main:
        print(text, flush=True)
