"""A folder that appears whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pretrain.errors import InputError
from pretrain.files import sync


@contextmanager
def partial_folder(out: Path) -> Iterator[Path]:
    """An empty folder beside `out` to fill and then `publish`; what is not published is removed.

    Raises:
        InputError: another process is writing `out`.
    """
    out = out.absolute()
    folder = out.with_name(f".{out.name}.partial")
    new_parents = [parent for parent in folder.parents if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, out)
        try:
            _remove_content(folder)  # a killed process leaves its folder behind, but not its lock
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            for parent in new_parents:
                with suppress(OSError):  # not empty
                    parent.rmdir()
    finally:
        os.close(handle)


def publish(folder: Path, out: Path) -> None:
    """Bring the files of `folder` to the disk and rename it to `out`, which must not exist or be empty."""
    for path in [*folder.iterdir(), folder]:
        sync(path)
    folder.rename(out)
    sync(out.absolute().parent)


def _lock(handle: int, out: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"out: another process is writing {out}; wait for it or choose another folder") from None


def _remove_content(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
