"""The sequence of training samples: which window of which corpus each one is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pretrain.corpus.mixture import Mixture
from pretrain.corpus.order import SampleOrder, order_key
from pretrain.corpus.windows import Window, Windows
from pretrain.errors import InputError


@dataclass(frozen=True)
class MixturePart:
    name: str
    windows: Windows
    fingerprint: str
    """Of the corpus the windows are cut from."""
    weights: tuple[tuple[int, float], ...] = ((0, 1.0),)
    """(from step, weight), steps ascending from 0: each weight holds until the next one's step."""


@dataclass(frozen=True)
class Plan:
    """Where samples come from: three int64 arrays of one shape."""

    source: np.ndarray
    """Number of the part."""
    window: np.ndarray
    epoch: np.ndarray
    """How many times the part has been gone through before."""


class SampleSequence:
    """Global sample numbers 0, 1, 2, ... -> windows, a pure function of the parts, their weights and the seed.

    Step s consists of the samples s * global_batch to (s + 1) * global_batch - 1. Each part is gone through epoch by
    epoch in an order of its own; a sequence of one part is exactly that part's `SampleOrder`.

    Raises:
        InputError: the weights are no mixture; the message names `data.mixture.<name>.weight`.
    """

    def __init__(self, parts: Sequence[MixturePart], *, seed: int, global_batch: int):
        self.parts = parts
        self._mixture = Mixture({part.name: part.weights for part in parts}, seed=seed, global_batch=global_batch)
        fingerprints = [part.fingerprint for part in parts]
        self._orders = [
            SampleOrder(
                len(part.windows),
                # Names have no say: a corpus in another folder keeps its order.
                order_key(part.fingerprint, seed, copy=fingerprints[:i].count(part.fingerprint)),
                part.windows.block_windows,
            )
            for i, part in enumerate(parts)
        ]

    def plan(self, samples: np.ndarray) -> Plan:
        """Windows of global sample numbers, int64 of any shape. Cheapest per sample in runs of thousands."""
        source, number = self._mixture.split(samples)
        window, epoch = np.empty_like(number), np.empty_like(number)
        for i, order in enumerate(self._orders):
            here = source == i
            window[here], epoch[here] = order.index(number[here]), number[here] // order.n
        return Plan(source, window, epoch)

    def window(self, source: int, window: int, epoch: int) -> Window:
        """One window of a plan.

        Raises:
            InputError: a shard is missing or damaged.
        """
        return self.parts[source].windows.window(window, epoch)

    def will_read(self, plan: Plan) -> None:
        """Hint that the windows of a plan are read next, in its order."""
        for i, part in enumerate(self.parts):
            here = plan.source == i
            part.windows.will_read(plan.window[here], plan.epoch[here])

    def drawn(self, samples: int) -> np.ndarray:
        """(parts,) int64: how many of the first `samples` samples come from each part."""
        return self._mixture.drawn(samples)

    def epochs(self, samples: int) -> dict[str, float]:
        """How often the first `samples` samples go through each part, by its name."""
        drawn = self.drawn(samples)
        return {part.name: count / len(part.windows) for part, count in zip(self.parts, drawn.tolist(), strict=True)}


def rows_of_rank(global_batch: int, micro_batch: int, rank: int, world_size: int) -> np.ndarray:
    """Rows of every global batch that are one rank's: int64, ascending, the `rank`-th of `world_size` equal runs.

    Raises:
        InputError: `global_batch` does not divide into ranks and micro-batches.
    """
    at_once = micro_batch * world_size
    if global_batch % at_once:
        raise InputError(
            f"train.global_batch: {global_batch} must be a multiple of "
            f"train.micro_batch ({micro_batch}) x ranks ({world_size}) = {at_once}"
        )
    rows = global_batch // world_size
    return np.arange(rank * rows, (rank + 1) * rows, dtype=np.int64)
