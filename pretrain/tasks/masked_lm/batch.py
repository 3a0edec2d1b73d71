"""Masked texts as tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xxhash
from torch import Tensor

from pretrain.corpus.windows import IGNORED, PADDING
from pretrain.tasks.examples import ExampleBatch
from pretrain.tasks.masked_lm.masking import MaskedTokens


@dataclass(frozen=True)
class MaskedBatch(ExampleBatch):
    """`tensors` has

    - `input_ids` (rows, n) int64, padded on the right,
    - `key_valid` (rows, n) bool, False on padding; absent where there is none,
    - `positions` (rows, k) int64: of the masked tokens, then zeros,
    - `targets` (rows, k) int64: these tokens, then -100.
    """

    def row_hashes(self) -> Iterator[int]:
        """Without what fills up rows to the length of the longest in the batch."""
        columns = (self.tensors[name] for name in ("input_ids", "positions", "targets"))
        for ids, positions, targets in zip(*columns, strict=True):
            masked = targets != IGNORED
            digest = xxhash.xxh64()
            for part in (ids, positions[masked], targets[masked]):
                digest.update(part.numpy().astype("<i8", copy=False).tobytes())
            yield digest.intdigest()


def masked_batch(rows: Sequence[MaskedTokens], length: int, indices: Tensor) -> MaskedBatch:
    """A batch of texts of up to `length` tokens each."""
    lengths = torch.tensor([len(row.input_ids) for row in rows])
    counts = torch.tensor([len(row.targets) for row in rows])
    most = max(1, int(counts.max()))  # nothing can be gathered from no positions at all
    tensors = {
        "input_ids": _stack([row.input_ids for row in rows], length, PADDING),
        "positions": _stack([row.positions for row in rows], most, 0),
        "targets": _stack([row.targets for row in rows], most, IGNORED),
    }
    if bool((lengths < length).any()):
        tensors["key_valid"] = torch.arange(length) < lengths[:, None]
    return MaskedBatch(tensors, counts, indices)


def _stack(rows: Sequence[np.ndarray], length: int, filler: int) -> Tensor:
    stacked = np.full((len(rows), length), filler, dtype=np.int64)
    for row, values in zip(stacked, rows, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(stacked)
