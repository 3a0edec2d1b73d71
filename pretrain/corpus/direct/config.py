"""The schema of `data.stream`: a data set to train on without preparing it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt, field_validator

from pretrain.schema import Section


class StreamConfig(Section):
    """Text that `datasets` streams, tokenized and packed as it arrives."""

    dataset: Annotated[str, Field(min_length=1)]
    """A data set of the Hugging Face Hub, a local folder or file, or the format (`json`, `parquet`, `arrow`, `text`)
    that `data_files` are in."""
    config: str | None = None
    """The data set's configuration, where it has several: `en` of `allenai/c4`."""
    split: Annotated[str, Field(min_length=1)] = "train"
    revision: str | None = None
    """Branch, tag or commit on the Hub. Give a commit if the data set might change before the run is done."""
    data_files: str | list[str] | None = None
    """Only these files: globs relative to the data set, paths or URLs."""
    field: Annotated[str, Field(min_length=1)] = "text"
    """The column that holds the documents' text, one document a row."""
    tokenizer: str = "bytes"
    """`bytes`, a tokenizer's file or folder, or its name on the Hugging Face Hub."""
    end_token: str | None = None
    """The token after every document; by default the tokenizer's usual one. Not for `bytes`."""
    streams: PositiveInt = 8
    """Virtual streams the data set is dealt to, whatever the number of ranks: the ranks must divide it, and it must
    divide `train.global_batch`. Each holds a file open and some megabytes of text in memory. A data set of fewer files
    is read several times over."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.005
    """Share of the documents, chosen by the hash of their text, that is never trained on."""
    validation_bytes: PositiveInt = 2_000_000
    """Text for validation: the first held-out documents of at least so many bytes."""
    licence: str = "unknown"

    @field_validator("data_files")
    @classmethod
    def _names_files(cls, value: str | list[str] | None) -> str | list[str] | None:
        if value is not None and (not value or not all(value)):
            raise ValueError("must name files, or be left out for all of the data set's")
        return value
