"""Which document each token of a packed window belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """The document of each query and of each key: attention stays within equal numbers.

    Masks follow from the numbers alone. `bounds` says the same of documents that lie end to end, for kernels that work
    document by document and need no mask.
    """

    queries: Tensor
    """(B, N) integers."""
    keys: Tensor
    """(B, M) integers."""
    bounds: tuple[Tensor, Tensor] | None = None
    """Where each document begins among all B * N queries and among all B * M keys, and the end: (documents + 1,) int32
    each, what kernels call `cu_seqlens`. Documents without queries are counted too.

    A document's queries are its last keys, so right-aligned causal attention that stays within documents is
    right-aligned causal attention of each document alone.
    """

    @classmethod
    def of_window(cls, numbers: Tensor, num_queries: int) -> Segments:
        """The tokens `numbers` (B, M) as keys, the last `num_queries` of them as queries.

        `bounds` are known where numbers ascend in every row. Finding them waits for the device: once, whatever the
        number of layers that use the result.
        """
        batch, length = numbers.shape
        prefix = length - num_queries
        steps = numbers.cpu().diff(dim=1)
        if (steps < 0).any():
            return cls(numbers[:, prefix:], numbers)
        row, column = F.pad(steps != 0, (1, 0), value=True).nonzero(as_tuple=True)
        query_bounds = F.pad(row * num_queries + (column - prefix).clamp(min=0), (0, 1), value=batch * num_queries)
        key_bounds = F.pad(row * length + column, (0, 1), value=batch * length)
        on_device = torch.stack((query_bounds, key_bounds)).to(numbers.device, torch.int32, non_blocking=True)
        return cls(numbers[:, prefix:], numbers, (on_device[0], on_device[1]))

    def among_queries(self) -> Segments:
        """The same queries, attending to each other."""
        bounds = None if self.bounds is None else (self.bounds[0], self.bounds[0])
        return Segments(self.queries, self.queries, bounds)

    def spans(self) -> Iterator[tuple[int, slice, slice]]:
        """Row, queries and keys of each document that has queries. Needs `bounds`, and reads them on the host."""
        assert self.bounds is not None
        queries, keys = (bounds.tolist() for bounds in self.bounds)
        for document in range(len(queries) - 1):
            if queries[document] == queries[document + 1]:
                continue
            row = queries[document] // self.queries.shape[1]
            yield (
                row,
                _within_row(queries, document, row * self.queries.shape[1]),
                _within_row(keys, document, row * self.keys.shape[1]),
            )


def _within_row(bounds: list[int], document: int, row_begin: int) -> slice:
    return slice(bounds[document] - row_begin, bounds[document + 1] - row_begin)
