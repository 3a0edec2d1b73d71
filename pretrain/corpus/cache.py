"""Remote files kept on a node's own disk, shared by all processes of the node."""

from __future__ import annotations

import fcntl
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from weakref import WeakSet

import xxhash

from pretrain.corpus.download import Patience, download
from pretrain.corpus.manifest import FileEntry
from pretrain.errors import InputError, Unavailable

LOCK_FILE = ".lock"
PARTIAL = ".partial"
KEPT_FOLDER = "corpora"
WAIT_SECONDS = 0.1
"""Between two looks whether other downloads have ended and left room."""


class NoRoomError(Exception):
    """Room could only be made by removing files that were used too recently."""


class ShardCache:
    """A folder of at most `max_bytes` into which remote files are downloaded once per node, however many ask for them.

    Files are named by their content and appear whole: a download goes to a `.partial` file, which has its final size
    from the start, so that the size of the folder counts what is still to come. The process that fills it holds its
    lock; one without a lock was left by a killed process and is removed. Room is made by removing the least recently
    used files; whoever has one of them open or mapped can go on using it. Processes agree on all of this through the
    file system alone: locks (flock), names, sizes, and times of change, which are times of last use.
    """

    def __init__(self, dir: Path, max_bytes: int, patience: Patience | None = None):
        self.dir = dir
        self.max_bytes = max_bytes
        self.patience = patience or Patience()
        self._checked: dict[str, int] = {}
        """The inode, by name, of each file whose hash this process has found right."""
        self.announcing: WeakSet[object] = WeakSet()
        """The streams of this process that fetch ahead into it and so have to share the room for that."""
        with self._naming_the_folder():
            dir.mkdir(parents=True, exist_ok=True)

    def open(self, url: str, entry: FileEntry, unused_since: float = math.inf) -> BinaryIO:
        """The file at `url`, open for reading, downloaded if it is not here; its hash has been checked.

        Only files not used after `unused_since` (Unix time) are removed to make room for it.

        Raises:
            InputError: it cannot be downloaded, is larger than the cache, or the folder cannot be written.
            NoRoomError: there is no room and too little unused since `unused_since`.
        """
        path = self._path(url, entry)
        with self._naming_the_folder():
            while True:
                with suppress(FileNotFoundError):
                    file = path.open("rb")
                    if self._is_whole(file, path.name, entry):
                        mark_used(file)
                        return file
                    self._remove_damaged(file, path)
                with self._partial(path) as partial:
                    if not path.exists():  # or another process has downloaded it while this one waited for the lock
                        return self._download(url, entry, path, partial, unused_since)

    def announce(self, files: Iterable[tuple[str, FileEntry]]) -> None:
        """Count files (URL and entry) that will be used soon as used now, those of them that are here."""
        for url, entry in files:
            with suppress(FileNotFoundError):
                os.utime(self._path(url, entry))

    def release(self, url: str, entry: FileEntry) -> None:
        """Let a file go before all that have not been released; whoever uses it again takes that back."""
        with suppress(FileNotFoundError):
            os.utime(self._path(url, entry), (0, 0))

    def keep(self, files: dict[str, bytes]) -> Path:
        """A folder that holds these small files and is never removed to make room."""
        digest = xxhash.xxh3_128()
        for name, content in sorted(files.items()):
            digest.update(f"{name} {len(content)} ".encode() + content)
        folder = self.dir / KEPT_FOLDER / digest.hexdigest()
        temporary = folder.with_name(PARTIAL)
        size = sum(map(len, files.values()))
        with self._naming_the_folder():
            if folder.is_dir():
                return folder
            with self._room(size, math.inf, "a manifest and its tokenizer"):
                if not folder.is_dir():  # or another process has written it while this one waited
                    shutil.rmtree(temporary, ignore_errors=True)
                    temporary.mkdir(parents=True)
                    for name, content in files.items():
                        (temporary / name).write_bytes(content)
                    temporary.rename(folder)
        return folder

    def _path(self, url: str, entry: FileEntry) -> Path:
        return self.dir / f"{entry.xxh64}-{entry.bytes}{PurePosixPath(url).suffix}"

    def _is_whole(self, file: BinaryIO, name: str, entry: FileEntry) -> bool:
        inode = os.fstat(file.fileno()).st_ino
        if self._checked.get(name) != inode:
            digest = xxhash.xxh64()
            while block := file.read(1 << 24):
                digest.update(block)
            if digest.hexdigest() != entry.xxh64:
                return False
            file.seek(0)
            self._checked[name] = inode
        return True

    def _remove_damaged(self, file: BinaryIO, path: Path) -> None:
        with self._locked(), file:
            if _is_at(file, path):  # and not the good one that another process has put in its place
                path.unlink()

    def _download(self, url: str, entry: FileEntry, path: Path, partial: BinaryIO, unused_since: float) -> BinaryIO:
        with self._room(entry.bytes, unused_since, url):
            partial.truncate(entry.bytes)
        download(url, entry, partial, self.patience)
        partial.flush()
        with self._locked():  # who sums up the sizes of the folder must meet the file under one name or the other
            os.rename(partial.name, path)
        self._checked[path.name] = os.fstat(partial.fileno()).st_ino
        partial.seek(0)
        return partial

    @contextmanager
    def _partial(self, path: Path) -> Iterator[BinaryIO]:
        """The file to download to, empty and locked; it is removed unless it has been renamed."""
        partial = path.with_name(path.name + PARTIAL)
        while True:
            partial.touch()
            try:
                file = partial.open("r+b")
            except FileNotFoundError:  # removed as abandoned, being without a lock
                continue
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(file, partial):
                break
            file.close()  # its name went to the whole file, or it was removed, while this process waited
        try:
            file.truncate(0)  # of what a killed process has left
            yield file
        finally:
            if _is_at(file, partial):
                partial.unlink()
                file.close()
            else:
                fcntl.flock(file, fcntl.LOCK_UN)

    @contextmanager
    def _room(self, size: int, unused_since: float, what: str) -> Iterator[None]:
        """The locked folder with room for `size` more bytes; waits for other processes' downloads if it must."""
        while True:
            with self._locked():
                if self._make_room(size, unused_since, what):
                    yield
                    return
            time.sleep(WAIT_SECONDS)

    def _make_room(self, size: int, unused_since: float, what: str) -> bool:
        """Remove the least recently used files for `size` more bytes; False if downloads are in the way."""
        removable, fixed, arriving = self._survey()
        if fixed + size > self.max_bytes:
            raise InputError(
                f"data.cache.max_gib: {self.max_bytes} bytes cannot hold {what} of {size} bytes, with {fixed} bytes of "
                "manifests and tokenizers beside it; raise it"
            )
        missing = fixed + arriving + size + sum(file.st_size for _, file in removable) - self.max_bytes
        if unused_since < math.inf:
            removable = [(path, file) for path, file in removable if file.st_mtime <= unused_since]
            if sum(file.st_size for _, file in removable) < missing:
                raise NoRoomError(what)
        elif fixed + arriving + size > self.max_bytes:
            return False
        for path, file in sorted(removable, key=lambda item: item[1].st_mtime):
            if missing <= 0:
                break
            path.unlink()
            missing -= file.st_size
        return True

    def _survey(self) -> tuple[list[tuple[Path, os.stat_result]], int, int]:
        """The whole files, the bytes of small files kept, and those of downloads under way; abandoned ones go."""
        whole, fixed, arriving = [], 0, 0
        for path in self.dir.rglob("*"):
            with suppress(FileNotFoundError):  # a download that failed just now
                if path.is_dir() or path.name == LOCK_FILE or (path.suffix == PARTIAL and _remove_abandoned(path)):
                    continue
                if path.parent != self.dir:
                    fixed += path.stat().st_size
                elif path.suffix == PARTIAL:
                    arriving += path.stat().st_size
                else:
                    whole.append((path, path.stat()))
        return whole, fixed, arriving

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The folder for this process alone: for a moment, never during a download."""
        with (self.dir / LOCK_FILE).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _naming_the_folder(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # A disk that is full or fails is no mistake in the configuration.
            mistaken = isinstance(error, PermissionError | FileExistsError | NotADirectoryError)
            kind = InputError if mistaken else Unavailable
            raise kind(f"data.cache.dir: {self.dir} cannot be used ({error}); choose another folder") from error


def mark_used(file: BinaryIO) -> None:
    """Note in the file system that a file of the cache is in use; it costs microseconds."""
    os.utime(file.fileno())


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether an open file is the one that now has this name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _remove_abandoned(partial: Path) -> bool:
    """Remove a partial file if no process holds its lock, and say whether it was so."""
    with partial.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if _is_at(file, partial):
            partial.unlink()
        return True
