"""Videos in folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import xxhash

from perceiver_ar.processors.clips import Clip, ClipShape, read_clip
from pretrain.errors import InputError

SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}
"""Of video files; files of other kinds may lie among them."""

NO_CLASS = -1
"""The label of videos in no folder of a class."""


class VideoFolder:
    """The videos of one split: in a folder for each class, or all together without classes."""

    def __init__(self, folder: Path, split: str, shape: ClipShape) -> None:
        """Raises InputError where there are none."""
        self._root, self._shape = folder / split, shape
        if not self._root.is_dir():
            raise InputError(f"data.folder: {self._root} is no folder: it must hold the videos of that split")
        folders = (path.name for path in self._root.iterdir() if path.is_dir() and path.name[0] != ".")
        self.classes = tuple(sorted(folders))
        self._files: list[str] = []
        labels: list[int] = []
        digest = xxhash.xxh3_128()
        for label, name in enumerate(self.classes) if self.classes else [(NO_CLASS, "")]:
            videos = sorted(_videos(self._root / name))
            if not videos:
                raise InputError(f"data.folder: {self._root / name} holds no videos ({', '.join(sorted(SUFFIXES))})")
            for file, size in videos:
                digest.update(f"{name}/{file}\0{size}\0".encode("utf-8", "surrogateescape"))
                self._files.append(os.path.join(name, file))
            labels += [label] * len(videos)
        self.labels = np.array(labels, dtype=np.int64)
        self.fingerprint = digest.hexdigest()

    def clip(self, number: int, place: float) -> Clip:
        try:
            return read_clip(self._root / self._files[number], self._shape, place)
        except (OSError, ValueError) as error:
            raise InputError(str(error)) from None

    def place(self, number: int) -> str:
        return str(self._root / self._files[number])


def _videos(folder: Path) -> Iterator[tuple[str, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name[0] != "." and os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                yield entry.name, entry.stat().st_size
