"""Cutting a token stream into training windows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pretrain.corpus.stream import TokenStream
from pretrain.errors import InputError

IGNORED = -100
PADDING = 0


@dataclass(frozen=True)
class Window:
    input_ids: np.ndarray
    """(context,) int64."""
    targets: np.ndarray
    """(latents,) int64, the tokens behind the last `latents` inputs; -100 where another window trains them."""
    valid: np.ndarray | None
    """(context,) bool, False on padding before the stream's start; None if there is none."""


class StridedWindows:
    """Windows `stride` tokens apart, each with up to `context` tokens before its targets.

    Window w trains tokens w*stride + 1 to (w+1)*stride of the stream, so every token but the very first is a target
    exactly once. Its inputs are the `context` tokens that end just before its last target. The last window is moved
    left to end with the stream.
    """

    def __init__(self, stream: TokenStream, *, context: int, latents: int, stride: int):
        if not 1 <= stride <= latents <= context:
            raise ValueError(f"stride {stride} <= latents {latents} <= context {context} does not hold")
        if len(stream) < 2:
            raise InputError(f"corpus: a split of {len(stream)} token has nothing to predict; add text to its sources")
        self.stream = stream
        self.context = context
        self.latents = latents
        self.stride = stride

    def __len__(self) -> int:
        return -(-(len(self.stream) - 1) // self.stride)

    def window(self, number: int) -> Window:
        """Window `number`, 0 <= number < len(self).

        Raises:
            InputError: a shard is missing or damaged.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"window {number} of {len(self)}")
        last_target = min((number + 1) * self.stride, len(self.stream) - 1)
        padding = max(0, self.context - last_target)
        tokens = np.full(self.context + 1, PADDING, dtype=np.int64)
        tokens[padding:] = self.stream.read(last_target - self.context + padding, last_target + 1)
        targets = tokens[-self.latents :].copy()
        targets[: self.latents - (last_target - number * self.stride)] = IGNORED
        valid = np.arange(self.context) >= padding if padding else None
        return Window(tokens[:-1], targets, valid)
