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
from pretrain.errors import InputError, Unavailable

CHUNK_BYTES = 4 << 20
CHUNKS_AHEAD = 8
"""Received while the one before is still being used."""
ANSWER_SECONDS = 60.0
"""Without a byte from a web server, after which a question to it has failed; transfers are watched more closely."""

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long a transfer is given: at most `tries`, each ended by `stall_seconds` without a byte."""

    tries: int = 6
    first_delay: float = 1.0
    """Seconds before the second try, give or take half; twice as many before each further one."""
    stall_seconds: float = 30.0


class TransferError(Exception):
    """A try that failed; the next one may not."""


class RefusalError(Exception):
    """A try that failed as any other would."""


def read_url(url: str, patience: Patience) -> bytes:
    """The content of a small file.

    Raises:
        InputError: as `transfer`.
    """
    return transfer(url, b"".join, patience)


def download(url: str, entry: FileEntry, target: BinaryIO, patience: Patience) -> None:
    """Fill `target`, from its start, with the file; never with more than `entry.bytes` bytes.

    Raises:
        InputError: as `transfer`; `Unavailable` also if the last try brought other bytes than `entry` says.
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

    transfer(url, fill, patience)


def transfer(url: str, consume: Callable[[Iterable[bytes]], T], patience: Patience) -> T:
    """What `consume` makes of the bytes of a file as they arrive, at the first try that goes through.

    `consume` may raise `TransferError` to begin again; whatever else it raises is raised.

    Raises:
        InputError: the file is missing or refused.
        Unavailable: the last try was cut or stalled.
    """
    system, path = open_file_system(url)
    return persist(url, lambda: consume(_chunks(system, path, patience.stall_seconds)), patience)


def persist(url: str, action: Callable[[], T], patience: Patience) -> T:
    """What `action` returns, at the first try at which it raises no `TransferError`.

    Raises:
        InputError: `action` raised `RefusalError`.
        Unavailable: the last try failed.
    """
    failures = 0
    while True:
        try:
            return action()
        except RefusalError as error:
            raise InputError(f"{url}: {error}") from error
        except TransferError as error:
            failures += 1
            if failures == patience.tries:
                raise Unavailable(f"{url}: {error} (tried {failures} times)") from error
        # Jitter, lest all nodes of a run come back to a struggling server at once.
        time.sleep(patience.first_delay * 2 ** (failures - 1) * random.uniform(0.5, 1.5))


def open_file_system(url: str) -> tuple[Any, str]:
    """The file system, and the path in it.

    Raises:
        InputError: there is no such protocol, or its package is missing.
    """
    protocol = url.partition("://")[0]
    if protocol == "hf":
        silence_hub()
    try:
        return fsspec.core.url_to_fs(url, **http_options(ANSWER_SECONDS) if protocol in ("http", "https") else {})
    except ImportError as error:
        package = getattr(error.__cause__, "name", None) or protocol
        raise InputError(f"{url}: {protocol}:// needs another package: pip install {package}") from error
    except ValueError as error:
        raise InputError(f"{url}: {error}") from error


def http_options(stall_seconds: float) -> dict[str, Any]:
    """What fsspec needs to read large files from web servers."""
    import aiohttp

    # By default aiohttp gives a transfer five minutes in all, and unpacks what a server calls `gzip` encoded.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=stall_seconds, sock_read=stall_seconds)
    headers = {"Accept-Encoding": "identity"}
    return {"client_kwargs": {"timeout": timeout, "auto_decompress": False, "headers": headers}}


def silence_hub() -> None:
    """Keep huggingface_hub's progress bars and advice out of the output of a command."""
    from huggingface_hub.utils import disable_progress_bars, logging

    disable_progress_bars()
    logging.set_verbosity_error()


def failure(error: BaseException) -> TransferError | RefusalError:
    """Whatever a file system raised, as what `persist` understands."""
    # fsspec calls whatever goes wrong with a web page FileNotFoundError.
    cause = (error.__cause__ if isinstance(error, FileNotFoundError) else None) or error
    # The HTTP status behind an error of aiohttp or of huggingface_hub.
    status = getattr(cause, "status", None) or getattr(getattr(cause, "response", None), "status_code", None)
    if status == 404 or isinstance(cause, FileNotFoundError):
        return RefusalError("there is no such file or folder, or none that may be read without logging in")
    if status in (401, 403) or isinstance(cause, PermissionError):
        return RefusalError("access is denied; log in, or give credentials the way its protocol does")
    lines = str(cause).splitlines()
    reason = f"cannot be read ({type(cause).__name__}{': ' + lines[0] if lines else ''})"
    refused = isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
    return RefusalError(reason) if refused or isinstance(cause, NotImplementedError) else TransferError(reason)


def _chunks(system: Any, path: str, stall_seconds: float) -> Iterator[bytes]:
    """The bytes of a file as they arrive.

    Calls of fsspec may block for ever, whatever the file system. So a thread makes them, and is left to itself when it
    has brought nothing for `stall_seconds`.

    Raises:
        RefusalError: asking for it is in vain.
        TransferError: anything else went wrong.
    """
    arrived: queue.SimpleQueue[bytes | BaseException] = queue.SimpleQueue()
    room = threading.Semaphore(CHUNKS_AHEAD)
    given_up = threading.Event()

    def receive() -> None:
        try:
            with _open(system, path) as file:
                while room.acquire() and not given_up.is_set():
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
            if isinstance(item, BaseException):
                raise failure(item) from item
            if not item:
                return
            yield item
            room.release()
    except queue.Empty:
        raise TransferError(f"stalled, no byte for {stall_seconds:g} s") from None
    finally:
        given_up.set()
        room.release()


def _open(system: Any, path: str) -> Any:
    # Without a size, fsspec first asks a web server for it and takes every failure of that for a missing file.
    options = {"size": 1} if "http" in system.protocol else {}
    # A block size of 0 is one request for the whole file where the file system can do that.
    return system.open(path, "rb", block_size=0, **options)
