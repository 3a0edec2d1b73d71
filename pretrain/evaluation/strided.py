"""Score a stream of tokens: every token once, each with as much context before it as the model can read.

The windows are those of training (`StridedWindows`), so a token's loss is that of one definite latent behind one
definite prefix, whatever the batch size or the number of ranks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pretrain.corpus import Batch, StridedWindows, TokenStream, Windows, stack_windows
from pretrain.corpus.windows import IGNORED
from pretrain.tasks.task import Score

POSITION_BUCKETS = 16


@dataclass(frozen=True)
class EvaluationResult:
    """What one pass over windows adds up to. All tensors are sums: all-reduced in place, they join the ranks."""

    nll: Tensor
    """Nats, (POSITION_BUCKETS,) float64, by where in the window the scoring latent is, first to last."""
    counts: Tensor
    """Tokens scored, float64, by the same buckets."""
    correct: Tensor
    """Of these, float64, those that the model held likeliest."""
    seconds: float
    tokens_per_byte: float
    """Of the whole split: turns nats per token into bits per byte."""

    @property
    def tokens(self) -> int:
        return int(self.counts.sum())

    @property
    def nll_sum(self) -> float:
        return float(self.nll.sum())

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nll_sum / self.tokens

    @property
    def accuracy(self) -> float:
        """Share of the tokens that the model held likeliest."""
        return float(self.correct.sum()) / self.tokens

    @property
    def perplexity(self) -> float:
        """Per token."""
        return perplexity(self.loss)

    @property
    def bits_per_byte(self) -> float:
        return self.loss / math.log(2) * self.tokens_per_byte

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def loss_by_position(self) -> list[float | None]:
        """Nats per token in each bucket; None where none of its latents is scored."""
        sums = zip(self.nll.tolist(), self.counts.tolist(), strict=True)
        return [nll / count if count else None for nll, count in sums]


def evaluate_stream(
    score: Score,
    stream: TokenStream,
    *,
    context: int,
    latents: int,
    stride: int,
    segments: bool = False,
    **options: Any,
) -> EvaluationResult:
    """Score every token of `stream` but the first; `options` as `evaluate_windows` takes them.

    A window of `context` tokens scores the last `stride` of its `latents`. `segments` keeps what a token can read
    within its document.

    Raises InputError where the stream is too short or its files are damaged.
    """
    windows = StridedWindows(stream, context=context, latents=latents, stride=stride, segments=segments)
    return evaluate_windows(score, windows, **options)


def evaluate_windows(
    score: Score,
    windows: Windows,
    *,
    batch: int,
    tokens_per_byte: float,
    device: torch.device,
    reach: int | None = None,
    max_windows: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    progress: Callable[[int], None] | None = None,
) -> EvaluationResult:
    """Score the targets of all windows, or of `max_windows` spread evenly, `batch` windows at a time.

    `reach` leaves only the last so many tokens of the prefix in the input (None: all of it); the latents, and so the
    tokens scored, stay the same. This rank takes every `world_size`-th window and calls `score` as often as every other
    rank, so that `score` may be collective. `progress` is told of every batch how many windows it had.

    Raises InputError where their files are damaged.
    """
    scored = spread_evenly(len(windows), max_windows)
    mine = scored[rank::world_size]
    buckets = torch.arange(windows.latents) * POSITION_BUCKETS // windows.latents
    nll, counts, correct = (torch.zeros(POSITION_BUCKETS, dtype=torch.float64) for _ in range(3))
    started = time.perf_counter()
    for start in range(0, math.ceil(len(scored) / world_size), batch):
        numbers = mine[start : start + batch]
        # A rank that has run out of windows goes through the motions with one that counts for nothing.
        inputs = _batch(windows, numbers or scored[:1], reach, device)
        with torch.no_grad():
            output = score(inputs)
        if numbers:
            right = output.measures["accuracy"]
            for sums, of_targets in ((nll, output.losses), (counts, inputs.targets != IGNORED), (correct, right)):
                sums.index_add_(0, buckets, of_targets.double().sum(0).cpu())
        if progress is not None:
            progress(len(numbers))
    return EvaluationResult(nll, counts, correct, time.perf_counter() - started, tokens_per_byte)


def perplexity(loss: float) -> float:
    """Of nats per token; infinite where it leaves the range of a float."""
    return math.exp(loss) if loss < 700 else math.inf


def spread_evenly(windows: int, limit: int | None) -> list[int]:
    """`limit` of the numbers below `windows`, each from the middle of an equal part; all of them without a limit."""
    if limit is None or limit >= windows:
        return list(range(windows))
    return [(2 * i + 1) * windows // (2 * limit) for i in range(limit)]


def _batch(windows: Windows, numbers: Sequence[int], reach: int | None, device: torch.device) -> Batch:
    """The windows with their prefixes cut on the left to `reach` tokens."""
    input_ids, targets, valid, segments = stack_windows([windows.window(number) for number in numbers])
    start = 0 if reach is None else max(0, windows.context - windows.latents - reach)
    return Batch(
        input_ids[:, start:],
        targets,
        key_valid=None if valid is None or valid[:, start:].all() else valid[:, start:],
        segments=None if segments is None else segments[:, start:],
        indices=torch.zeros(len(numbers), dtype=torch.int64),
    ).to(device)
