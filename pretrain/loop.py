"""Training: the step, and what happens around it."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import torch
from torch import Tensor

from perceiver_ar.cost import training_flops_per_token
from pretrain.checkpoint import restore_checkpoint, save_checkpoint
from pretrain.config import RunConfig
from pretrain.corpus import Batch, BatchReader, Corpus, SampleOrder, StridedWindows, open_corpus, order_key
from pretrain.distributed import Ranks, StopRequest, join
from pretrain.engine import Engine
from pretrain.errors import ABORTED, DONE, STOPPED
from pretrain.evaluation import evaluate_stream
from pretrain.hardware import matmul_peak, peak_memory_gib
from pretrain.metrics import MetricsLog
from pretrain.progress import Interval, Progress, describe_corpus, read_progress
from pretrain.report import write_report
from pretrain.schedule import learning_rate
from pretrain.startup import DTYPES, agree_on_checkpoint, banner, build_task
from pretrain.tasks.causal_lm import seed_dropout


def train(config: RunConfig) -> int:
    """Take the run to `config.train.steps`, from its newest whole checkpoint if it has one; returns the exit code.

    Every process of the run calls it, then ends by `pretrain.distributed.leave`. Raises InputError.
    """
    stop = StopRequest()
    ranks = join()
    corpus = open_corpus(config.data.corpus)
    checkpoint = agree_on_checkpoint(config.run.dir, ranks)
    progress = Progress() if checkpoint is None else read_progress(checkpoint, corpus)
    if progress.step >= config.train.steps:
        _say(ranks, f"already done: {checkpoint} has {progress.step} of {config.train.steps} steps")
        return DONE

    task = build_task(config, checkpoint)
    engine = Engine(task, config, ranks)
    if checkpoint is not None:
        restore_checkpoint(checkpoint, engine)
    _say(ranks, banner(config, ranks, engine, progress, checkpoint))
    latents = config.model.max_latents
    windows = StridedWindows(corpus.split("train"), context=config.model.max_seq_len, latents=latents, stride=latents)
    with BatchReader(
        windows,
        SampleOrder(len(windows), order_key(corpus.manifest.fingerprint, config.run.seed)),
        global_batch=config.train.global_batch,
        micro_batch=config.train.micro_batch,
        rank=ranks.rank,
        world_size=ranks.size,
        start_step=progress.step,
        stop_step=config.train.steps,
        read_ahead=config.data.read_ahead,
    ) as reader:
        run = Run(config, corpus, ranks, engine, reader, progress, stop)
        code = run.fit()
        if run.log is not None:
            run.log.close()
            if code == DONE:
                _say(ranks, f"report          {write_report(config.run.dir)}")
        return code


@dataclass(frozen=True)
class StepResult:
    applied: bool
    """False where gradients were not finite: nothing has changed."""
    grad_norm: float
    """Before clipping."""
    nll: Tensor
    """Nats summed over this rank's targets: a scalar on its device."""


def train_step(engine: Engine, micro_batches: Sequence[Batch], tokens: int, lr: float, seed: int) -> StepResult:
    """One optimizer step on this rank's micro-batches of a global batch with `tokens` targets over all ranks.

    Every target weighs the same, however the global batch is split into ranks and micro-batches. Collective.
    """
    nll = torch.zeros((), dtype=torch.float64, device=engine.ranks.device)
    for i, batch in enumerate(micro_batches, start=1):
        seed_dropout(seed, batch)
        output = engine(_to(batch, engine.ranks.device))
        engine.backward(output.loss_sum / tokens, last=i == len(micro_batches))
        nll += output.nll.sum(dtype=torch.float64)
    applied, grad_norm = engine.step(lr)
    return StepResult(applied, grad_norm, nll)


class Run:
    """One process's share of a training run."""

    def __init__(
        self,
        config: RunConfig,
        corpus: Corpus,
        ranks: Ranks,
        engine: Engine,
        reader: BatchReader,
        progress: Progress,
        stop: StopRequest,
    ) -> None:
        self.config, self.corpus, self.ranks, self.engine = config, corpus, ranks, engine
        self.reader, self.progress, self.stop = reader, progress, stop
        self.validation = corpus.split("validation")
        self.log = MetricsLog(config, progress.step) if ranks.is_main else None
        self.peak = matmul_peak(ranks.device, DTYPES[config.train.precision])
        self.saved_step: int | None = progress.step or None
        self._clock = time.perf_counter() - progress.seconds
        self._interval = Interval(ranks.device, progress.interval_nll if ranks.is_main else 0.0)

    def fit(self) -> int:
        """Take the remaining steps; returns the exit code."""
        config, progress, train = self.config, self.progress, self.config.train
        self.engine.train()
        for batch in self.reader:
            tokens, asked_to_stop = self._agree(batch.micro_batches)
            if asked_to_stop:
                self.save()
                _say(self.ranks, f"stopped on request after step {progress.step}: run the same command to go on")
                return STOPPED
            started = time.perf_counter()
            lr = learning_rate(progress.step + 1, config.optimizer.lr, train.steps, config.schedule)
            result = train_step(self.engine, batch.micro_batches, tokens, lr, config.run.seed)
            self._count(result, tokens)
            self._interval.took(time.perf_counter() - started, batch.wait)

            if progress.skipped_in_a_row >= train.max_skipped_steps:
                _say(self.ranks, self._why_aborted(), file=sys.stderr)
                return ABORTED
            if self._due(config.logging.every):
                self.log_training(lr, result.grad_norm)
            if self._due(config.evaluation.every):
                self.validate()
            if self._due(config.checkpoint.every):
                self.save()
        return DONE

    def _agree(self, micro_batches: Sequence[Batch]) -> tuple[int, bool]:
        """(targets in the step's global batch, whether any rank was asked to stop). Collective."""
        # One exchange between hosts per step serves both, and does not wait for the GPU.
        targets = sum(int((batch.targets != -100).sum()) for batch in micro_batches)
        tokens, stops = self.ranks.sum(targets, bool(self.stop))
        return int(tokens), stops > 0

    def _count(self, result: StepResult, tokens: int) -> None:
        progress = self.progress
        progress.step += 1
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

    def log_training(self, lr: float, grad_norm: float) -> None:
        """Record the steps since the last time. Collective."""
        config, progress, interval = self.config, self.progress, self._interval
        [nll] = self.ranks.sum(interval.nll.item())
        memory = self.ranks.max(peak_memory_gib(self.ranks.device))
        if self.log is not None:
            loss = nll / progress.interval_tokens if progress.interval_tokens else float("nan")
            per_second = config.train.global_batch * config.model.max_latents * interval.steps / interval.seconds
            flops = training_flops_per_token(config.model) * per_second
            self.log.write(
                {
                    "kind": "train",
                    "step": progress.step,
                    "trained_tokens": progress.trained_tokens,
                    "loss": loss,
                    "bits_per_byte": loss / math.log(2) * tokens_per_byte(self.corpus, "train"),
                    "lr": lr,
                    "grad_norm": grad_norm,
                    "tokens_per_second": per_second,
                    "mfu": flops / (self.peak * self.ranks.size),
                    "data_wait": interval.waited / interval.seconds,
                    "memory_gib": memory,
                    "skipped_steps": progress.skipped_steps,
                    "batch_hash": self.reader.batch_hash(progress.step - 1),
                    "seconds": self._seconds(),
                },
                eta=(config.train.steps - progress.step) * interval.seconds / interval.steps,
            )
        progress.interval_tokens = 0
        self._interval = Interval(self.ranks.device)

    def validate(self) -> None:
        """Score windows spread over the validation split. Collective."""
        self.engine.train(False)
        result = evaluate_stream(
            self._score,
            self.validation,
            context=self.config.model.max_seq_len,
            latents=self.config.model.max_latents,
            stride=self.config.model.max_latents,
            batch=self.config.train.micro_batch,
            tokens_per_byte=tokens_per_byte(self.corpus, "validation"),
            device=self.ranks.device,
            max_windows=self.config.evaluation.windows,
            rank=self.ranks.rank,
            world_size=self.ranks.size,
        )
        self.engine.train()
        self.ranks.sum_(result.nll)
        self.ranks.sum_(result.counts)
        self.progress.validation = {
            "kind": "validation",
            "step": self.progress.step,
            "trained_tokens": self.progress.trained_tokens,
            "loss": result.loss,
            "perplexity": result.perplexity,
            "bits_per_byte": result.bits_per_byte,
            "seconds": self._seconds(),
        }
        if self.log is not None:
            self.log.write(self.progress.validation)

    def _score(self, input_ids: Tensor, targets: Tensor, key_valid: Tensor | None) -> Tensor:
        # Through the engine, as ZeRO-3 gathers weights by its hooks. Sample numbers matter to dropout only.
        return self.engine(Batch(input_ids, targets, key_valid, indices=torch.zeros(0))).nll

    def save(self) -> None:
        """Write a checkpoint, unless this step has one. Collective."""
        progress, config = self.progress, self.config
        if progress.step == self.saved_step:
            return
        progress.seconds = self._seconds()
        [progress.interval_nll] = self.ranks.sum(self._interval.nll.item())
        state = dataclasses.asdict(progress) | {
            "config": config.model_dump(mode="json"),
            "corpus": describe_corpus(self.corpus),
            "ranks": self.ranks.size,
        }
        save_checkpoint(config.run.dir, self.engine, state, config.checkpoint.keep)
        self.saved_step = progress.step

    def _seconds(self) -> float:
        return time.perf_counter() - self._clock

    def _why_aborted(self) -> str:
        limit, step = self.config.train.max_skipped_steps, self.progress.step
        return (
            f"aborted: no update in {limit} steps, {step - limit + 1} to {step}, as their gradients were not finite "
            f"(train.max_skipped_steps: {limit}); a lower optimizer.lr may help"
        )


def tokens_per_byte(corpus: Corpus, split: str) -> float:
    """Turns nats per token into nats per byte of text."""
    entry = corpus.manifest.splits[split]
    return entry.tokens / entry.bytes


def _to(batch: Batch, device: torch.device) -> Batch:
    moved: dict[str, Any] = {k: v if v is None else v.to(device, non_blocking=True) for k, v in vars(batch).items()}
    return Batch(**moved)


def _say(ranks: Ranks, text: str, file: TextIO = sys.stdout) -> None:
    if ranks.is_main:
        print(text, file=file, flush=True)
