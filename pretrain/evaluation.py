"""Score a stream of tokens: every token once, each with as much context before it as the model can read.

The windows are those of training (`StridedWindows`), so a token's loss is that of one definite latent behind one
definite prefix, whatever the batch size or the number of ranks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.corpus import Batch, StridedWindows, TokenStream, stack_windows

POSITION_BUCKETS = 16

Score = Callable[[Batch], Tensor]
"""A model in evaluation mode: batch -> nats per target (b, N), 0 where it is ignored (-100). Indices mean nothing."""


@dataclass(frozen=True)
class EvaluationResult:
    """What one pass over a stream adds up to. Both tensors are sums: all-reduced in place, they join the ranks."""

    nll: Tensor
    """Nats, (POSITION_BUCKETS,) float64, by where in the window the scoring latent is, first to last."""
    counts: Tensor
    """Tokens scored, float64, by the same buckets."""
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
    batch: int,
    tokens_per_byte: float,
    device: torch.device,
    segments: bool = False,
    reach: int | None = None,
    max_windows: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    progress: Callable[[int], None] | None = None,
) -> EvaluationResult:
    """Score every token of `stream` but the first, or `max_windows` windows spread evenly, `batch` windows at a time.

    A window of `context` tokens scores the last `stride` of its `latents`. `reach` leaves only the last so many tokens
    of the prefix in the input (None: all of it); the latents, and so the tokens scored, stay the same. `segments` keeps
    what a token can read within its document. This rank takes
    every `world_size`-th window and calls `score` as often as every other rank, so that `score` may be collective.
    `progress` is told of every batch how many windows it had.

    Raises InputError where the stream is too short or its files are damaged.
    """
    dataset = StridedWindows(stream, context=context, latents=latents, stride=stride, segments=segments)
    windows = spread_evenly(len(dataset), max_windows)
    mine = windows[rank::world_size]
    buckets = torch.arange(latents) * POSITION_BUCKETS // latents
    nll = torch.zeros(POSITION_BUCKETS, dtype=torch.float64)
    counts = torch.zeros(POSITION_BUCKETS, dtype=torch.float64)
    started = time.perf_counter()
    for start in range(0, math.ceil(len(windows) / world_size), batch):
        numbers = mine[start : start + batch]
        # A rank that has run out of windows goes through the motions with one that counts for nothing.
        inputs = _batch(dataset, numbers or windows[:1], reach, device)
        with torch.no_grad():
            losses = score(inputs)
        if numbers:
            nll.index_add_(0, buckets, losses.double().sum(0).cpu())
            counts.index_add_(0, buckets, (inputs.targets != -100).double().sum(0).cpu())
        if progress is not None:
            progress(len(numbers))
    return EvaluationResult(nll, counts, time.perf_counter() - started, tokens_per_byte)


def perplexity(loss: float) -> float:
    """Of nats per token; infinite where it leaves the range of a float."""
    return math.exp(loss) if loss < 700 else math.inf


def spread_evenly(windows: int, limit: int | None) -> list[int]:
    """`limit` of the numbers below `windows`, each from the middle of an equal part; all of them without a limit."""
    if limit is None or limit >= windows:
        return list(range(windows))
    return [(2 * i + 1) * windows // (2 * limit) for i in range(limit)]


def _batch(dataset: StridedWindows, numbers: Sequence[int], reach: int | None, device: torch.device) -> Batch:
    """The windows with their prefixes cut on the left to `reach` tokens."""
    input_ids, targets, valid, segments = stack_windows([dataset.window(number) for number in numbers])
    start = 0 if reach is None else max(0, dataset.context - dataset.latents - reach)
    return Batch(
        input_ids[:, start:],
        targets,
        key_valid=None if valid is None or valid[:, start:].all() else valid[:, start:],
        segments=None if segments is None else segments[:, start:],
        indices=torch.zeros(len(numbers), dtype=torch.int64),
    ).to(device)
