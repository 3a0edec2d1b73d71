"""Where labelled examples are: in a folder for each class, or in a data set that `datasets` loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from pretrain.errors import InputError
from pretrain.schema import FilePath, Location, Section

Name = Annotated[str, Field(min_length=1)]


class LabelledDataSection(Section):
    """One of `folder` and `dataset` says where the examples are."""

    folder: FilePath | None = None
    """Holds a folder for each split, with a folder of files for each class: `train/cat/17.jpg`."""
    dataset: Location | None = None
    """A data set that `datasets` loads: its name on the Hugging Face Hub, or a local folder or file."""
    config: str | None = None
    """The data set's configuration, where it has several."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    label_column: Name = "label"
    train: Name = "train"
    """Split to train on."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.folder is None) == (self.dataset is None):
            raise ValueError("give exactly one of data.folder and data.dataset")
        if self.dataset is None and (self.config or self.revision):
            raise ValueError("config and revision are for data.dataset only, not data.folder")
        return self


def class_folders(folder: Path, split: str, kind: str) -> list[str]:
    """Names of the classes in a split, sorted; `kind` is what they are of, such as ``images``.

    Raises InputError where there is no such split, or it holds no folders.
    """
    if not folder.is_dir():
        raise InputError(f"data.folder: {folder} is no folder")
    if not (folder / split).is_dir():
        splits = sorted(path.name for path in folder.iterdir() if path.is_dir())
        raise InputError(f"data.folder: {folder} has no split {split!r}; there are {', '.join(splits) or 'none'}")
    names = sorted(path.name for path in (folder / split).iterdir() if path.is_dir() and path.name[0] != ".")
    if not names:
        raise InputError(f"data.folder: {folder / split} must hold a folder of {kind} for each class, it holds none")
    return names


def check_columns(dataset: str | None, wanted: Mapping[str, str], columns: Sequence[str]) -> None:
    """Raises InputError where a data set lacks one of the columns that fields of `data` name."""
    for field, column in wanted.items():
        if column not in columns:
            raise InputError(f"data.{field}: {dataset} has no column {column!r}; there are {', '.join(columns)}")
