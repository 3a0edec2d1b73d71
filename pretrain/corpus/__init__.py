"""Token shards: write them, read them, put them in order, cut windows and serve batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pretrain.corpus.order import SampleOrder, order_key
from pretrain.corpus.stream import Corpus, TokenStream, open_corpus
from pretrain.corpus.tokenizers import Tokenizer
from pretrain.corpus.windows import StridedWindows, Window

if TYPE_CHECKING:
    from pretrain.corpus.reader import Batch, BatchReader, StepBatch, stack_windows

__all__ = [
    "Batch",
    "BatchReader",
    "Corpus",
    "SampleOrder",
    "StepBatch",
    "StridedWindows",
    "TokenStream",
    "Tokenizer",
    "Window",
    "open_corpus",
    "order_key",
    "stack_windows",
]


def __getattr__(name: str) -> Any:
    # Batches are torch tensors; preparing a corpus needs no torch, and importing it takes seconds.
    if name in ("Batch", "BatchReader", "StepBatch", "stack_windows"):
        from pretrain.corpus import reader

        return getattr(reader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
