"""What names the text of a data set that `datasets` streams, for preparation as for training straight from it."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from pretrain.corpus.sources.files import Globs
from pretrain.schema import Location, Section


class TextDataset(Section):
    """A column of text of one split."""

    where: ClassVar[str]
    """What errors put before the name of a field."""
    dataset: Location
    """Its name on the Hugging Face Hub, a local folder or file, or the format (`json`, `parquet`, `csv`, `text`, ...)
    that `data_files` are in."""
    config: str | None = None
    """The data set's configuration, where it has several: `en` of `allenai/c4`."""
    split: Annotated[str, Field(min_length=1)] = "train"
    revision: str | None = None
    """Branch, tag or commit on the Hub; by default its main branch. Only a commit names the same data for ever."""
    data_files: Globs | None = None
    """Only these files: globs relative to the data set, paths or URLs."""
    field: Annotated[str, Field(min_length=1)] = "text"
    """The column that holds the text."""
    licence: str = "unknown"
