"""Which part of a mixture each sample comes from: a function of the sample's number, without state.

Every block of 2,048 samples holds an exact number of samples of each part, shuffled among themselves. A change of
weights begins a new sequence of blocks at the first sample of its step, wherever the block before it is then.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
import xxhash

from pretrain.corpus.order import ORDER_VERSION, mix, permute
from pretrain.errors import InputError

BLOCK_SAMPLES = 2048

Weights = Sequence[tuple[int, float]]
"""(from step, weight), steps ascending from 0: each weight holds until the next one's step."""


@dataclass(frozen=True)
class Stage:
    """Samples from `first` to the next stage's first, over which the weights stay as they are."""

    first: int
    counts: np.ndarray
    """(parts,) int64: samples of each part in every whole block."""
    drawn: np.ndarray
    """(parts,) int64: samples of each part before this stage."""


class Mixture:
    """Global sample numbers -> (part, how many samples of that part come before it).

    The samples of each part are 0, 1, 2, ... in the order of the global samples, none left out or repeated, across
    blocks and stages.

    Args:
        weights: of each part, by name.
        seed: of the run.
        global_batch: samples per step; step s begins at sample s * global_batch.

    Raises:
        InputError: the weights are no mixture; the message names `data.mixture.<name>.weight`.
    """

    def __init__(self, weights: Mapping[str, Weights], *, seed: int, global_batch: int):
        for name, own in weights.items():
            _check(name, own)
        self._single = len(weights) == 1
        self._key = np.uint64(xxhash.xxh64_intdigest(f"mixture order {ORDER_VERSION}, seed {seed}".encode()))
        self._stages: list[Stage] = []
        for step in sorted({step for own in weights.values() for step, _ in own}):
            first = step * global_batch
            drawn = self.drawn(first) if self._stages else np.zeros(len(weights), dtype=np.int64)
            at_step = {name: own[bisect_right([s for s, _ in own], step) - 1][1] for name, own in weights.items()}
            self._stages.append(Stage(first, block_counts(at_step, step), drawn))
        self._firsts = np.array([stage.first for stage in self._stages], dtype=np.int64)

    def split(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Part and number within the part of each global sample number, int64 of its shape.

        Every block that is touched is laid out whole: cheapest per sample in runs of neighbours.
        """
        samples = np.asarray(samples, dtype=np.int64)
        if self._single:
            return np.zeros_like(samples), samples
        part, number = np.empty_like(samples), np.empty_like(samples)
        of_stage = np.searchsorted(self._firsts, samples, side="right") - 1
        for i in np.unique(of_stage):
            here = of_stage == i
            part[here], number[here] = self._split(self._stages[i], samples[here])
        return part, number

    def drawn(self, samples: int) -> np.ndarray:
        """(parts,) int64: how many of the first `samples` global samples come from each part."""
        stage = self._stages[bisect_right(self._stages, samples, key=lambda stage: stage.first) - 1]
        blocks, rest = divmod(samples - stage.first, BLOCK_SAMPLES)
        part, _ = self._blocks(stage, np.array([blocks]))
        return stage.drawn + blocks * stage.counts + np.bincount(part[0, :rest], minlength=len(stage.counts))

    def _split(self, stage: Stage, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        block, slot = np.divmod(samples - stage.first, BLOCK_SAMPLES)
        distinct, where = np.unique(block, return_inverse=True)
        parts, within = self._blocks(stage, distinct)
        part = parts[where, slot]
        return part, stage.drawn[part] + block * stage.counts[part] + within[where, slot]

    def _blocks(self, stage: Stage, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Part of each slot of the given blocks, and how many slots before it in its block are of the same part.

        Both (blocks, BLOCK_SAMPLES) int64.
        """
        key = mix(self._key ^ mix((stage.first + blocks * BLOCK_SAMPLES).astype(np.uint64)))[:, None]
        unshuffled = np.repeat(np.arange(len(stage.counts)), stage.counts)
        slots = np.broadcast_to(np.arange(BLOCK_SAMPLES), (len(blocks), BLOCK_SAMPLES))
        part = unshuffled[permute(slots, BLOCK_SAMPLES, key)]
        within = np.empty_like(part)
        by_part = np.argsort(part.astype(np.uint16), axis=1, kind="stable")
        counted = np.concatenate([np.arange(count) for count in stage.counts])
        np.put_along_axis(within, by_part, counted[None], axis=1)
        return part, within


def block_counts(weights: Mapping[str, float], step: int) -> np.ndarray:
    """Samples of each part in a block, in proportion to the weights: (parts,) int64 that sum to `BLOCK_SAMPLES`.

    By largest remainder, in exact arithmetic; of equal remainders the part named first has precedence.

    Raises:
        InputError: all weights are 0, or one is too small for a sample per block.
    """
    # Of fractions, not floats, so that equal weights get equal counts however they sum up.
    exact = [Fraction(weight) for weight in weights.values()]
    if (total := sum(exact)) == 0:
        names = ", ".join(f"data.mixture.{name}.weight" for name in weights)
        raise InputError(f"{names}: all 0 from step {step} on; at least one must be positive")
    shares = [BLOCK_SAMPLES * weight / total for weight in exact]
    counts = np.array([math.floor(share) for share in shares], dtype=np.int64)
    by_remainder = sorted(range(len(shares)), key=lambda i: shares[i] % 1, reverse=True)
    counts[by_remainder[: BLOCK_SAMPLES - int(counts.sum())]] += 1
    for (name, weight), count in zip(weights.items(), counts, strict=True):
        if weight > 0 and count == 0:
            enough = float((total - Fraction(weight)) / (BLOCK_SAMPLES - 1))
            raise InputError(
                f"data.mixture.{name}.weight: {weight:g} from step {step} on is less than one sample in "
                f"{BLOCK_SAMPLES}; must be 0 or at least {enough:.3g}"
            )
    return counts


def _check(name: str, weights: Weights) -> None:
    field = f"data.mixture.{name}.weight"
    steps = [step for step, _ in weights]
    if steps[:1] != [0] or any(later <= earlier for earlier, later in pairwise(steps)):
        raise InputError(f"{field}: begins at steps {steps}; they must ascend, the first being 0")
    for step, weight in weights:
        if not (math.isfinite(weight) and weight >= 0):
            raise InputError(f"{field}: {weight:g} from step {step} on; must be a number of at least 0")
