"""Where labelled images are: folders of files, or a data set that `datasets` loads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash

from pretrain.corpus.download import silence_hub
from pretrain.errors import InputError
from pretrain.tasks.image_classification.config import DataSection
from pretrain.tasks.labelled import check_columns, class_folders

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
"""Of image files; files of other kinds may lie among them."""


class LabelledImages(Protocol):
    """One split."""

    classes: tuple[str, ...]
    """Names of the labels 0, 1, ..."""
    labels: np.ndarray
    """(images,) int64."""
    fingerprint: str
    """Another one where images, their labels or their order are others."""

    def content(self, number: int) -> bytes:
        """An image's file. Raises InputError where it cannot be read."""

    def place(self, number: int) -> str:
        """What people know an image by."""


def open_images(data: DataSection, num_classes: int) -> tuple[LabelledImages, LabelledImages]:
    """What is trained on, and what it is validated on.

    Raises InputError where they cannot be opened, their classes differ, or a label is none of them, with its row.
    """
    splits = data.train, data.validation
    train, validation = (
        FolderImages(data.folder, split) if data.folder is not None else DatasetImages(data, split, num_classes)
        for split in splits
    )
    if train.classes != validation.classes:
        [name, *_] = sorted(set(train.classes) ^ set(validation.classes))
        raise InputError(f"data: class {name!r} is in one of {data.train} and {data.validation} only")
    if len(train.classes) != num_classes:
        names = ", ".join(train.classes[:20]) + (", ..." if len(train.classes) > 20 else "")
        raise InputError(f"model.num_classes: is {num_classes}, but there are {len(train.classes)} classes: {names}")
    for images in (train, validation):
        for number in np.flatnonzero((images.labels < 0) | (images.labels >= num_classes))[:1].tolist():
            label = images.labels[number]
            raise InputError(f"{images.place(number)}: label {label} is no class, they are 0 to {num_classes - 1}")
    return train, validation


class FolderImages:
    """A folder of image files for each class."""

    def __init__(self, folder: Path, split: str) -> None:
        self._root = folder / split
        names = class_folders(folder, split, "images")
        self.classes = tuple(names)
        self._files: list[str] = []
        labels: list[int] = []
        digest = xxhash.xxh3_128()
        for label, name in enumerate(names):
            images = sorted(_images(self._root / name))
            if not images:
                raise InputError(f"data.folder: {self._root / name} holds no images ({', '.join(sorted(SUFFIXES))})")
            for file, size in images:
                digest.update(f"{name}/{file}\0{size}\0".encode("utf-8", "surrogateescape"))
                self._files.append(f"{name}/{file}")
            labels += [label] * len(images)
        self.labels = np.array(labels, dtype=np.int64)
        self.fingerprint = digest.hexdigest()

    def content(self, number: int) -> bytes:
        try:
            return (self._root / self._files[number]).read_bytes()
        except OSError as error:
            raise InputError(f"{self.place(number)}: cannot be read ({error.strerror})") from None

    def place(self, number: int) -> str:
        return str(self._root / self._files[number])


def _images(folder: Path) -> list[tuple[str, int]]:
    with os.scandir(folder) as entries:
        return [
            (entry.name, entry.stat().st_size)
            for entry in entries
            if entry.name[0] != "." and os.path.splitext(entry.name)[1].lower() in SUFFIXES
        ]


class DatasetImages:
    """A split of a data set of the Hugging Face Hub, or of local files in one of its formats."""

    def __init__(self, data: DataSection, split: str, num_classes: int) -> None:
        """Classes are called by their numbers where the data set does not name them."""
        from datasets import Image

        rows = _open_rows(data, split)
        self._name, self._column = f"{data.dataset}, {split}", data.image_column
        self._images = rows.select_columns(self._column).cast_column(self._column, Image(decode=False))
        self.labels = rows.with_format("numpy")[data.label_column][:].astype(np.int64)
        names = getattr(rows.features[data.label_column], "names", None)
        self.classes = tuple(names or map(str, range(num_classes)))
        # Reading all of a large data set takes minutes: its first image stands for the others.
        self.fingerprint = xxhash.xxh3_128_hexdigest(self.labels.astype("<i8").tobytes() + self.content(0))

    def content(self, number: int) -> bytes:
        image = self._images[number][self._column]
        if image is None:
            raise InputError(f"{self.place(number)}: there is no image")
        try:
            return image["bytes"] or Path(image["path"]).read_bytes()
        except OSError as error:
            raise InputError(f"{self.place(number)}: cannot be read ({error.strerror})") from None

    def place(self, number: int) -> str:
        return f"{self._name}, row {number}"


def _open_rows(data: DataSection, split: str) -> Any:
    """The split in the cache of `datasets`; raises InputError where it has no images with numbers for labels."""
    import datasets

    silence_hub()
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(data.dataset, data.config, split=split, revision=data.revision)
    except Exception as error:  # `datasets` has no common base of what it raises
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"data.dataset: cannot open split {split!r} of {data.dataset}: {reason}") from error
    wanted = {"image_column": data.image_column, "label_column": data.label_column}
    check_columns(data.dataset, wanted, list(rows.features))
    if not isinstance(rows.features[data.image_column], datasets.Image):
        raise InputError(f"data.image_column: column {data.image_column!r} of {data.dataset} holds no images")
    if not len(rows):
        raise InputError(f"data.dataset: split {split!r} of {data.dataset} is empty")
    labels = rows.with_format("numpy")[data.label_column][:]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        column = data.label_column
        raise InputError(f"data.label_column: column {column!r} of {data.dataset} must hold a whole number in each row")
    return rows
