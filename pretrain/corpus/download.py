"""Remote files whole, through fsspec, over networks that cut, stall and garble."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

import fsspec
import xxhash

from pretrain.corpus.manifest import FileEntry
from pretrain.errors import InputError

CHUNK_BYTES = 4 << 20

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long a download is given: at most `tries`, each ended by `stall_seconds` without a byte."""

    tries: int = 6
    first_delay: float = 1.0
    """Seconds before the second try, give or take half; twice as many before each further one."""
    stall_seconds: float = 30.0


class TransferError(Exception):
    """A try that failed; the next one may not."""


def read_url(url: str, patience: Patience) -> bytes:
    """The content of a small file.

    Raises:
        InputError: it is missing, or the last try failed.
    """
    return _try_again(url, b"".join, patience)


def download(url: str, entry: FileEntry, target: BinaryIO, patience: Patience) -> None:
    """Fill `target`, from its start, with the file; never with more than `entry.bytes` bytes.

    Raises:
        InputError: it is missing, or the last try was cut, stalled or brought other bytes than `entry` says.
        OSError: `target` cannot be written.
    """

    def fill(chunks: Iterable[bytes]) -> None:
        target.seek(0)
        received, digest = 0, xxhash.xxh64()
        for chunk in chunks:
            received += len(chunk)
            if received > entry.bytes:
                raise TransferError(f"damaged, it has more than the {entry.bytes} bytes of the manifest")
            digest.update(chunk)
            target.write(chunk)
        if received < entry.bytes:
            raise TransferError(f"cut, it has {received} bytes, the manifest says {entry.bytes}")
        if digest.hexdigest() != entry.xxh64:
            raise TransferError("damaged, its hash is not the manifest's")

    _try_again(url, fill, patience)


def _try_again(url: str, consume: Callable[[Iterable[bytes]], T], patience: Patience) -> T:
    """What `consume` makes of the bytes of the file, at the first try that goes through."""
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # a package that is not installed, or an unknown protocol
        raise InputError(f"{url}: {error}") from error
    failures = 0
    while True:
        try:
            return consume(_chunks(filesystem, path, patience.stall_seconds))
        except FileNotFoundError:
            raise InputError(f"{url}: missing; check the address, or prepare the corpus again") from None
        except TransferError as error:
            failures += 1
            if failures == patience.tries:
                raise InputError(f"{url}: {error} (tried {failures} times)") from error
        # Jitter, lest all nodes of a run come back to a struggling server at once.
        time.sleep(patience.first_delay * 2 ** (failures - 1) * random.uniform(0.5, 1.5))


def _chunks(filesystem: fsspec.AbstractFileSystem, path: str, stall_seconds: float) -> Iterator[bytes]:
    """The bytes of a file as they arrive.

    Calls of fsspec may block for ever, whatever the file system. So a thread makes them, and is left to itself when it
    has brought nothing for `stall_seconds`.

    Raises:
        FileNotFoundError: there is no such file.
        TransferError: anything else went wrong.
    """
    arrived: queue.SimpleQueue[bytes | BaseException] = queue.SimpleQueue()
    given_up = threading.Event()

    def receive() -> None:
        try:
            with _open(filesystem, path) as file:
                while not given_up.is_set():
                    chunk = file.read(CHUNK_BYTES)
                    arrived.put(chunk)
                    if not chunk:
                        return
        except BaseException as error:  # whatever it is, the waiting side must hear of it
            arrived.put(error)

    threading.Thread(target=receive, name="download", daemon=True).start()
    try:
        while True:
            item = arrived.get(timeout=stall_seconds)
            if isinstance(item, FileNotFoundError):
                raise item
            if isinstance(item, BaseException):
                raise TransferError(f"{type(item).__name__}: {item}") from item
            if not item:
                return
            yield item
    except queue.Empty:
        raise TransferError(f"stalled, no byte for {stall_seconds:g} s") from None
    finally:
        given_up.set()


def _open(filesystem: fsspec.AbstractFileSystem, path: str) -> Any:
    options: dict[str, Any] = {}
    if "http" in filesystem.protocol:
        import aiohttp

        # Without a size, fsspec first asks for it and takes every failure of that for a missing file. aiohttp would
        # end a download after five minutes, however well it goes.
        options = {"size": 1, "timeout": aiohttp.ClientTimeout(total=None)}
    # A block size of 0 is one request for the whole file where the file system can do that.
    return filesystem.open(path, "rb", block_size=0, **options)
