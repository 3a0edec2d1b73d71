"""A model's state as a checkpoint sees it, without the training."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from perceiver_ar.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from pretrain.checkpoint import Piece
from pretrain.distributed import Ranks

CONFIG = PerceiverARConfig(vocab_size=30, max_seq_len=16, max_latents=4, num_channels=8, num_heads=2, num_layers=1)
ALONE = Ranks(0, 1, torch.device("cpu"), None)


@dataclass
class StoredState:
    """In the place of an engine; each rank owns an equal part of every tensor."""

    model: PerceiverAR
    adam_step: int = 3
    stage: int = 1
    ranks: Ranks = ALONE
    tensors: dict[str, dict[str, torch.Tensor]] = field(init=False)
    """Kind -> name -> whole tensor."""

    def __post_init__(self):
        weights = {name: p.detach() for name, p in self.model.named_parameters()}
        self.tensors = {
            "weight": weights,
            "exp_avg": {name: weight * 2 for name, weight in weights.items()},
            "exp_avg_sq": {name: weight**2 for name, weight in weights.items()},
        }

    @property
    def shapes(self):
        return {name: tuple(p.shape) for name, p in self.model.named_parameters()}

    def pieces(self):
        for kind, tensors in self.tensors.items():
            for name, tensor in tensors.items():
                parts = tensor.view(-1).tensor_split(self.ranks.size)
                start = sum(map(len, parts[: self.ranks.rank]))
                if len(parts[self.ranks.rank]):
                    yield Piece(kind, name, start, parts[self.ranks.rank])


def state_of(step: int, loss: float | None = None, validated: int | None = None) -> dict[str, Any]:
    """What a run adds to a checkpoint; `loss` is of the last validation, at `validated` or else at `step`."""
    validation = None if loss is None else {"step": validated or step, "loss": loss}
    return {"step": step, "config": {"model": asdict(CONFIG)}, "validation": validation}


@contextmanager
def refused_writes(beyond: int = 2000) -> Iterator[None]:
    """Have the system refuse whatever this process writes beyond so many bytes into a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (beyond, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
