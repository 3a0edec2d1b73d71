"""A folder that appears whole or not at all, and the folder beside it where work waits until it is."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console

from pretrain.corpus.writing.units import DONE
from pretrain.errors import InputError
from pretrain.files import sync


def work_path(out: Path) -> Path:
    """Of the hidden folder beside `out`."""
    out = out.absolute()
    return out.with_name(f".{out.name}.partial")


@contextmanager
def work_folder(out: Path, console: Console) -> Iterator[Path]:
    """The folder `work_path(out)`, as an earlier attempt left it.

    Where the context ends with an exception and units are finished, it stays, and the user is told; else it is removed.

    Raises:
        InputError: another process is writing `out`.
    """
    folder = work_path(out)
    new_parents = [parent for parent in folder.parents if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, out)
        try:
            yield folder
        except BaseException:
            if any(folder.rglob(f"*{DONE}")):
                note = f"work so far is kept in {folder}; run again to go on"
                console.print(note, markup=False, highlight=False, soft_wrap=True)
            else:
                _remove(folder, new_parents)
            raise
        _remove(folder, new_parents)
    finally:
        os.close(handle)


def remove_leftovers(out: Path, console: Console) -> None:
    """Remove the work folder of a process that was killed between publishing `out` and removing it."""
    if work_path(out).exists():
        with work_folder(out, console):
            pass


def keep_only(folder: Path, names: Iterable[str]) -> None:
    """Remove all else from a folder."""
    wanted = set(names)
    for path in folder.iterdir():
        if path.name not in wanted:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def publish(folder: Path, out: Path) -> None:
    """Bring the files of `folder` to the disk and rename it to `out`, which must not exist or be empty."""
    for path in [*folder.iterdir(), folder]:
        sync(path)
    folder.rename(out)
    sync(out.absolute().parent)


def _remove(folder: Path, new_parents: Iterable[Path]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for parent in new_parents:
        with suppress(OSError):  # not empty
            parent.rmdir()


def _lock(handle: int, out: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"out: another process is writing {out}; wait for it or choose another folder") from None
