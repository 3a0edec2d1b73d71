"""Training straight from a data set that `datasets` streams: nothing is prepared, the order is exact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pretrain.corpus.direct.config import StreamConfig

if TYPE_CHECKING:
    from pretrain.corpus.direct.reader import DirectReader
    from pretrain.corpus.direct.validation import write_validation

__all__ = ["DirectReader", "StreamConfig", "write_validation"]


def __getattr__(name: str) -> Any:
    # The schema of every run imports the configuration; what reads the data is for the runs that stream.
    if name == "DirectReader":
        from pretrain.corpus.direct import reader

        return reader.DirectReader
    if name == "write_validation":
        from pretrain.corpus.direct import validation

        return validation.write_validation
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
