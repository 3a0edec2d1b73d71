"""Token shards: write them, read them, put them in order, mix them, cut windows and serve batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pretrain.corpus.cache import ShardCache
from pretrain.corpus.order import SampleOrder, order_key
from pretrain.corpus.samples import MixturePart, Plan, SampleSequence
from pretrain.corpus.stream import Corpus, TokenStream, open_corpus
from pretrain.corpus.tokenizers import Tokenizer
from pretrain.corpus.windows import CropWindows, PackedWindows, StridedWindows, Window, Windows, make_windows

if TYPE_CHECKING:
    from pretrain.corpus.reader import Batch, BatchReader, StepBatch, global_hash, stack_windows

__all__ = [
    "Batch",
    "BatchReader",
    "Corpus",
    "CropWindows",
    "MixturePart",
    "PackedWindows",
    "Plan",
    "SampleOrder",
    "SampleSequence",
    "ShardCache",
    "StepBatch",
    "StridedWindows",
    "TokenStream",
    "Tokenizer",
    "Window",
    "Windows",
    "global_hash",
    "make_windows",
    "open_corpus",
    "order_key",
    "stack_windows",
]


def __getattr__(name: str) -> Any:
    # Batches are torch tensors; preparing a corpus needs no torch, and importing it takes seconds.
    if name in ("Batch", "BatchReader", "StepBatch", "global_hash", "stack_windows"):
        from pretrain.corpus import reader

        return getattr(reader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
