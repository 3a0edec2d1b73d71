"""Where labelled texts are: folders of files, or a data set that `datasets` loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pretrain.corpus.sources.dataset import TextDataset
from pretrain.errors import InputError
from pretrain.tasks.labelled import check_columns, class_folders
from pretrain.tasks.text_classification.config import DataSection


@dataclass(frozen=True)
class Source:
    """One split as it is written, unchecked."""

    name: str
    texts: Sequence[Any]
    labels: Sequence[Any]
    """Numbers, or names."""
    classes: tuple[str, ...] | None
    """Their names, where the source tells."""
    files: Sequence[Path] | None = None
    """Of the texts, where each has one."""

    def place(self, row: int) -> str:
        """What people know a row by."""
        return f"{self.name}, row {row}" if self.files is None else str(self.files[row])


class _Split(TextDataset):
    where: ClassVar[str] = "data."


def open_source(data: DataSection, split: str) -> Source:
    """Raises InputError where there is no such split, or it cannot be read."""
    return _folder(data.folder, split) if data.folder is not None else _dataset(data, split)


def _folder(folder: Path, split: str) -> Source:
    root, classes = folder / split, tuple(class_folders(folder, split, "texts"))
    files = {name: sorted(path for path in (root / name).rglob("*") if path.is_file()) for name in classes}
    if not any(files.values()):
        raise InputError(f"data.folder: {root} must hold a folder of texts for each class, it holds none")
    paths = [path for name in classes for path in files[name]]
    labels = [name for name in classes for _ in files[name]]
    return Source(str(root), [_read(path) for path in paths], labels, classes, paths)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}): convert it or leave it out") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def _dataset(data: DataSection, split: str) -> Source:
    # `datasets` takes seconds to import, which folders need not wait for.
    from datasets import ClassLabel

    assert data.dataset is not None
    rows = _open(data, split)
    wanted = {"text_column": data.text_column, "label_column": data.label_column}
    check_columns(data.dataset, wanted, rows.column_names)
    labels, feature = rows[data.label_column][:], rows.features[data.label_column]
    classes = None
    if isinstance(feature, ClassLabel):
        classes = tuple(feature.names)
    elif labels and all(isinstance(label, str) for label in labels):
        classes = tuple(sorted(set(labels)))
    return Source(f"{data.dataset}, {split}", rows[data.text_column], labels, classes)


def _open(data: DataSection, split: str) -> Any:
    """The split in the cache of `datasets`, where any row can be read."""
    from pretrain.corpus.sources.streamed_text import find_builder

    assert data.dataset is not None
    try:
        builder = find_builder(
            _Split(
                dataset=data.dataset, config=data.config, split=split, revision=data.revision, field=data.text_column
            )
        )
        builder.download_and_prepare()
        return builder.as_dataset(split)
    except InputError:
        raise
    except Exception as error:  # `datasets` has no common base of what it raises
        reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        raise InputError(f"data.dataset: cannot open split {split!r} of {data.dataset}: {reason}") from error
