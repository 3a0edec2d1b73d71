"""A folder that appears whole or not at all, and the folder beside it where work waits until it is."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console

from pretrain.console import print_line
from pretrain.corpus.writing.units import RESULT
from pretrain.errors import InputError
from pretrain.files import sync


def work_path(out: Path) -> Path:
    """Of the hidden folder beside `out`, or beside what `out` is a link to."""
    out = out.resolve()
    return out.with_name(f".{out.name}.partial")


@contextmanager
def work_folder(out: Path, console: Console) -> Iterator[Path]:
    """The folder `work_path(out)`, as an earlier attempt left it.

    Where the context ends with an exception and units are finished, it stays, and the user is told; else it is removed.

    Raises:
        InputError: another process is writing `out`, or the disk is full.
    """
    folder = work_path(out)
    new_parents = [parent for parent in folder.parents if not parent.exists()]
    handle = _make_and_lock(folder, out)
    try:
        yield folder
    except BaseException as error:
        if any(folder.rglob(f"*{RESULT}")):
            print_line(console, f"work so far is kept in {folder}; run again to go on")
        else:
            _remove(folder, new_parents)
        if isinstance(error, OSError) and error.filename is None:  # it was raised by a write
            raise InputError(f"{folder}: {error}") from error
        raise
    else:
        _remove(folder, new_parents)
    finally:
        os.close(handle)


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Have temporary files made in a new folder, in place of what a process that was killed left in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
        shutil.rmtree(folder, ignore_errors=True)


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
    out = out.resolve()
    folder.rename(out)
    sync(out.parent)


def _remove(folder: Path, new_parents: Iterable[Path]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for parent in new_parents:
        with suppress(OSError):  # not empty
            parent.rmdir()


def _make_and_lock(folder: Path, out: Path) -> int:
    """A handle that holds the folder's lock until it is closed."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # who held the lock has removed the folder
            handle = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(handle), folder.stat()):
                    return os.dup(handle)  # it shares the lock
            except BlockingIOError:
                message = f"out: another process is writing {out}; wait for it or choose another folder"
                raise InputError(message) from None
            finally:
                os.close(handle)
