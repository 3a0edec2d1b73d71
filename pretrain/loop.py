"""Training: the step, and what happens around it."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from functools import partial
from itertools import chain
from typing import TextIO

from perceiver_ar.cost import training_flops_per_token
from pretrain.checkpoint import restore_checkpoint, save_checkpoint
from pretrain.config import RunConfig
from pretrain.corpus import StepBatch, global_hash
from pretrain.corpus.reader import StepReader
from pretrain.data import TrainingData, describe_data, mixture_weights, open_data, tokens_per_byte
from pretrain.distributed import Ranks, RanksError, StopRequest, join
from pretrain.engine import Engine
from pretrain.errors import ABORTED, DONE, STOPPED, InputError
from pretrain.evaluation import EvaluationResult, evaluate_stream, perplexity
from pretrain.hardware import matmul_peak, peak_memory_gib
from pretrain.metrics import MetricsLog
from pretrain.progress import Interval, Progress, read_progress
from pretrain.report import write_report
from pretrain.schedule import learning_rate
from pretrain.startup import DTYPES, agree_on_checkpoint, banner, build_task
from pretrain.training_step import StepResult, train_step


def train(config: RunConfig) -> int:
    """Take the run to `config.train.steps`, from its newest whole checkpoint if it has one; returns the exit code.

    Every process of the run calls it, then ends by `pretrain.distributed.leave`. Raises InputError.
    """
    stop = StopRequest()
    ranks = join()
    data = open_data(config, ranks)
    checkpoint = agree_on_checkpoint(config.run.dir, ranks)
    progress = Progress()
    if checkpoint is not None:
        fingerprints = describe_data(data.corpora)["fingerprints"]
        progress = ranks.together(partial(read_progress, checkpoint, fingerprints))
    if progress.step >= config.train.steps:
        _say(ranks, f"already done: {checkpoint} has {progress.step} of {config.train.steps} steps")
        return DONE

    task = build_task(config, checkpoint)
    engine = Engine(task, config, ranks)
    if checkpoint is not None:
        restore_checkpoint(checkpoint, engine)
    _say(ranks, banner(config, ranks, engine, progress, checkpoint))
    with ranks.together(partial(data.reader, ranks, progress)) as reader:
        run = Run(config, data, ranks, engine, reader, progress, stop)
        code = run.fit()
        if run.log is not None:
            run.log.close()
            if code == DONE:
                _say(ranks, f"report          {write_report(config.run.dir)}")
        return code


class Run:
    """One process's share of a training run."""

    def __init__(
        self,
        config: RunConfig,
        data: TrainingData,
        ranks: Ranks,
        engine: Engine,
        reader: StepReader,
        progress: Progress,
        stop: StopRequest,
    ) -> None:
        self.config, self.data, self.ranks, self.engine = config, data, ranks, engine
        self.reader, self.progress, self.stop = reader, progress, stop
        self.validation = {name: corpus.split("validation") for name, corpus in data.corpora.items()}
        self.log = MetricsLog(config, progress.step) if ranks.is_main else None
        self.peak = matmul_peak(ranks.device, DTYPES[config.train.precision])
        self.saved_step = progress.step
        self._clock = time.perf_counter() - progress.seconds
        self._interval = Interval(ranks.device, progress.interval_nll if ranks.is_main else 0.0)

    def fit(self) -> int:
        """Take the remaining steps; returns the exit code."""
        config, progress, train = self.config, self.progress, self.config.train
        self.engine.train()
        while progress.step < train.steps:
            batch = self._read()
            tokens, must_end = self._agree(batch)
            if must_end:
                self.save()
                self.ranks.together(partial(_checked, batch))
                _say(self.ranks, f"stopped on request after step {progress.step}: run the same command to go on")
                return STOPPED
            batch = _checked(batch)
            started = time.perf_counter()
            lr = learning_rate(progress.step + 1, config.optimizer.lr, train.steps, config.schedule)
            result = train_step(self.engine, batch.micro_batches, tokens, lr, config.run.seed)
            self._count(result, tokens)
            progress.data_state = batch.state
            self._interval.took(time.perf_counter() - started, batch.wait)

            if progress.skipped_in_a_row >= config.stability.max_skipped_steps:
                _say(self.ranks, self._why_aborted(), file=sys.stderr)
                return ABORTED
            if self._due(config.logging.every):
                self.log_training(lr, result.grad_norm, batch)
            if self._due(config.evaluation.every):
                self.validate()
            if self._due(config.checkpoint.every):
                self.save()
        return DONE

    def _read(self) -> StepBatch | InputError:
        try:
            return next(self.reader)
        except InputError as error:
            return error

    def _agree(self, batch: StepBatch | InputError) -> tuple[int, bool]:
        """(targets in the step's global batch, whether any rank was asked to stop or could not read). Collective."""
        # One exchange between hosts per step serves all, and does not wait for the GPU.
        micro_batches = [] if isinstance(batch, InputError) else batch.micro_batches
        targets = sum(int((micro_batch.targets != -100).sum()) for micro_batch in micro_batches)
        tokens, ends = self.ranks.sum(targets, bool(self.stop) or isinstance(batch, InputError))
        return int(tokens), ends > 0

    def _count(self, result: StepResult, tokens: int) -> None:
        progress = self.progress
        progress.step += 1
        self._interval.targets += tokens
        if result.applied:
            progress.trained_tokens += tokens
            progress.skipped_in_a_row = 0
            progress.interval_tokens += tokens
            self._interval.nll += result.nll
        else:
            progress.skipped_steps += 1
            progress.skipped_in_a_row += 1

    def _due(self, every: int) -> bool:
        step = self.progress.step
        return step == self.config.train.steps or (every > 0 and step % every == 0)

    def log_training(self, lr: float, grad_norm: float, batch: StepBatch) -> None:
        """Record the steps since the last time, of which `batch` is the last. Collective."""
        config, progress, interval = self.config, self.progress, self._interval
        [nll] = self.ranks.sum(interval.nll.item())
        memory = self.ranks.max(peak_memory_gib(self.ranks.device))
        hashes = self.ranks.gather(batch.sample_hashes())
        joined = self._joined()
        if self.log is not None:
            weights = mixture_weights(config, batch.step)
            loss = nll / progress.interval_tokens if progress.interval_tokens else float("nan")
            windows = config.train.global_batch * interval.steps
            # Of whole windows: padding and ignored targets cost as much as others.
            flops = training_flops_per_token(config.model) * windows * config.model.max_latents / interval.seconds
            self.log.write(
                {
                    "kind": "train",
                    "step": progress.step,
                    "trained_tokens": progress.trained_tokens,
                    "loss": loss,
                    "bits_per_byte": loss / math.log(2) * tokens_per_byte(self.data.corpora, "train", weights),
                    "lr": lr,
                    "grad_norm": grad_norm,
                    "tokens_per_second": interval.targets / interval.seconds,
                    "mfu": flops / (self.peak * self.ranks.size),
                    "data_wait": interval.waited / interval.seconds,
                    "memory_gib": memory,
                    "skipped_steps": progress.skipped_steps,
                    "batch_hash": global_hash(list(chain.from_iterable(hashes))),
                    "epochs": self.data.epochs(joined),
                    "seconds": self._seconds(),
                },
                eta=(config.train.steps - progress.step) * interval.seconds / interval.steps,
            )
        progress.interval_tokens = 0
        self._interval = Interval(self.ranks.device)

    def validate(self) -> None:
        """Score windows spread over each corpus's validation split. Collective."""
        self.engine.train(False)
        results = {name: self._evaluate(name) for name in self.validation}
        self.engine.train()
        step = self.progress.step
        weights = mixture_weights(self.config, step)
        loss = sum(weight * results[name].loss for name, weight in weights.items())
        self.progress.validation = {
            "kind": "validation",
            "step": step,
            "trained_tokens": self.progress.trained_tokens,
            "loss": loss,
            "perplexity": perplexity(loss),
            "bits_per_byte": loss / math.log(2) * tokens_per_byte(self.data.corpora, "validation", weights),
            "seconds": self._seconds(),
        }
        if len(results) > 1:
            parts = {name: result.bits_per_byte for name, result in results.items()}
            self.progress.validation["bits_per_byte_of"] = parts
        if self.log is not None:
            self.log.write(self.progress.validation)

    def _evaluate(self, name: str) -> EvaluationResult:
        config, split = self.config, self.data.corpora[name].manifest.splits["validation"]
        evaluate = partial(
            evaluate_stream,
            lambda batch: self.engine(batch).nll,  # through the engine, as ZeRO-3 gathers weights by its hooks
            self.validation[name],
            context=config.model.max_seq_len,
            latents=config.model.max_latents,
            stride=config.model.max_latents,
            segments=config.data.within_documents,
            batch=config.train.micro_batch,
            tokens_per_byte=split.tokens / split.bytes,
            device=self.ranks.device,
            max_windows=config.evaluation.windows,
            rank=self.ranks.rank,
            world_size=self.ranks.size,
        )
        result = self.ranks.together(evaluate)
        self.ranks.sum_(result.nll)
        self.ranks.sum_(result.counts)
        return result

    def save(self) -> None:
        """Write a checkpoint, unless this step has one. Collective."""
        progress, config = self.progress, self.config
        if progress.step == self.saved_step:
            return
        progress.seconds = self._seconds()
        [progress.interval_nll] = self.ranks.sum(self._interval.nll.item())
        state = dataclasses.asdict(self._joined()) | {
            "config": config.model_dump(mode="json"),
            "data": describe_data(self.data.corpora),
            "ranks": self.ranks.size,
        }
        save_checkpoint(config.run.dir, self.engine, state, config.checkpoint.keep)
        self.saved_step = progress.step

    def _joined(self) -> Progress:
        """Progress with every rank's share of the data's state. Collective."""
        shares = [share for share in self.ranks.gather(self.progress.data_state) if share is not None]
        places = {stream: place for share in shares for stream, place in share.items()}
        if len({place["data"] for place in places.values()}) > 1:
            raise RanksError("data.stream: ranks read different files; name a commit as data.stream.revision")
        return dataclasses.replace(self.progress, data_state=places or None)

    def _seconds(self) -> float:
        return time.perf_counter() - self._clock

    def _why_aborted(self) -> str:
        limit, step = self.config.stability.max_skipped_steps, self.progress.step
        return (
            f"aborted: no update in {limit} steps, {step - limit + 1} to {step}, as their gradients were not finite "
            f"(stability.max_skipped_steps: {limit}); a lower optimizer.lr may help"
        )


def _checked(batch: StepBatch | InputError) -> StepBatch:
    if isinstance(batch, InputError):
        raise batch
    return batch


def _say(ranks: Ranks, text: str, file: TextIO = sys.stdout) -> None:
    if ranks.is_main:
        print(text, file=file, flush=True)
