"""Texts with their classes: what a run trains and is validated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import xxhash

from pretrain.corpus.splits import content_hash, is_validation
from pretrain.errors import InputError
from pretrain.tasks.text_classification.config import DataSection
from pretrain.tasks.text_classification.sources import Source, open_source


@dataclass(frozen=True)
class LabelledTexts:
    source: Source
    classes: tuple[str, ...]
    """Names of the labels 0, 1, ..."""
    labels: np.ndarray
    """(texts,) int64."""
    rows: np.ndarray
    """(texts,) int64: the rows of the source that they are."""
    hashes: Sequence[bytes]
    """`content_hash` of each text."""

    def __len__(self) -> int:
        return len(self.labels)

    def text(self, number: int) -> str:
        return self.source.texts[int(self.rows[number])]

    def place(self, number: int) -> str:
        """What people know a text by."""
        return self.source.place(int(self.rows[number]))

    @property
    def fingerprint(self) -> str:
        """Another one where texts, their classes or their order are others."""
        digest = xxhash.xxh64(self.labels.astype("<i8").tobytes())
        digest.update(b"".join(self.hashes))
        return digest.hexdigest()


def open_texts(data: DataSection, num_classes: int) -> tuple[LabelledTexts, LabelledTexts]:
    """The texts of training and of validation.

    Raises InputError where they cannot be read, or a text is empty or its label no class, with its row.
    """
    source = open_source(data, data.train)
    classes = data.labels or source.classes or tuple(map(str, range(num_classes)))
    if len(classes) != num_classes:
        names = ", ".join(classes)
        raise InputError(f"model.num_classes: is {num_classes}, but {source.name} has {len(classes)} classes: {names}")
    train = _checked(source, classes)
    if data.validation is not None:
        return train, _checked(open_source(data, data.validation), classes)
    held_out = np.array([is_validation(digest, data.validation_fraction) for digest in train.hashes])
    if not held_out.any() or held_out.all():
        raise InputError(
            f"data.validation_fraction: {data.validation_fraction:g} of the {len(train)} texts of {source.name} leaves "
            f"nothing to {'train' if held_out.all() else 'validate'} on: choose another"
        )
    return _part(train, ~held_out), _part(train, held_out)


def _checked(source: Source, classes: tuple[str, ...]) -> LabelledTexts:
    by_name = {name: number for number, name in enumerate(classes)}
    labels, hashes = [], []
    for row, (text, written) in enumerate(zip(source.texts, source.labels, strict=True)):
        if not isinstance(text, str) or not text.strip():
            what = "the text is empty" if text is None or isinstance(text, str) else f"{text!r} is no text"
            raise InputError(f"{source.place(row)}: {what}: leave the row out")
        label = by_name.get(written) if isinstance(written, str) else written
        if not isinstance(label, int) or not 0 <= label < len(classes):
            there = ", ".join(f"{number} ({name})" for number, name in enumerate(classes))
            raise InputError(f"{source.place(row)}: label {written!r} is no class, there are {there}")
        labels.append(label)
        hashes.append(content_hash(text.encode()))
    if not labels:
        raise InputError(f"data: {source.name} has no texts")
    return LabelledTexts(source, classes, np.array(labels), np.arange(len(labels)), hashes)


def _part(texts: LabelledTexts, chosen: np.ndarray) -> LabelledTexts:
    """Those that `chosen` (texts,) bool says."""
    hashes = [digest for digest, keep in zip(texts.hashes, chosen, strict=True) if keep]
    return replace(texts, labels=texts.labels[chosen], rows=texts.rows[chosen], hashes=hashes)
