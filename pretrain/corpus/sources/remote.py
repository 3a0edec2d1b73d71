"""Files behind a URL: listed through fsspec, and copied whole to the local disk before they are read.

A copy makes every format readable from everywhere, and what the network does to a transfer ends here: one that breaks
off or stalls is begun again, a few times.
"""

from __future__ import annotations

import errno
import glob
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec

from pretrain.corpus.sources.unit import SourceFile
from pretrain.errors import InputError

ATTEMPTS = 4
PAUSE_SECONDS = 0.5
"""Before the second attempt; doubled before each further one."""
STALL_SECONDS = 60.0
"""Without a byte from a web server. Other protocols' packages have limits of their own."""

T = TypeVar("T")


def is_url(location: str) -> bool:
    return "://" in location


def list_remote(root: str, pattern: str) -> list[SourceFile]:
    """Files below the URL `root` that match a glob; none where nothing does.

    Raises:
        InputError: there is no such place, no way to reach it, or no package for its protocol.
    """
    system, base = _open_file_system(root)
    path = f"{base.rstrip('/')}/{pattern}"

    def find() -> list[SourceFile]:
        if not glob.has_magic(pattern):
            return [_describe(system, base, path, system.info(path))]
        found = system.glob(path, detail=True)
        return [_describe(system, base, name, info) for name, info in found.items() if info["type"] == "file"]

    return _persistently(f"{root.rstrip('/')}/{pattern}", find)


@contextmanager
def local_copy(file: SourceFile) -> Iterator[Path]:
    """The file on the local disk: where it lies, or a temporary copy (in ``$TMPDIR``) of what its URL holds.

    Raises:
        InputError: it cannot be had whole.
    """
    if not is_url(file.path):
        yield Path(file.path)
        return
    system, remote_path = _open_file_system(file.path)
    with tempfile.TemporaryDirectory(prefix="pretrain-") as folder:
        path = Path(folder, "copy").with_suffix(PurePosixPath(urlsplit(file.path).path).suffix)

        def copy() -> None:
            system.get_file(remote_path, str(path))
            if file.bytes and path.stat().st_size != file.bytes:
                raise EOFError(f"{path.stat().st_size} of {file.bytes} bytes came")

        _persistently(file.path, copy)
        yield path


def _open_file_system(url: str) -> tuple[Any, str]:
    protocol = url.partition("://")[0]
    options: dict[str, Any] = {}
    if protocol in ("http", "https"):
        import aiohttp

        # By default aiohttp gives a transfer five minutes in all, and unpacks what a server calls `gzip` encoded.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALL_SECONDS, sock_read=STALL_SECONDS)
        headers = {"Accept-Encoding": "identity"}
        options = {"client_kwargs": {"timeout": timeout, "auto_decompress": False, "headers": headers}}
    elif protocol == "hf":
        silence_hub()
    try:
        return fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        package = getattr(error.__cause__, "name", None) or protocol
        raise InputError(f"{url}: {protocol}:// needs another package: pip install {package}") from error
    except ValueError as error:
        raise InputError(f"{url}: {error}") from error


def silence_hub() -> None:
    """Keep huggingface_hub's progress bars and advice out of the output of a command."""
    from huggingface_hub.utils import disable_progress_bars, logging

    disable_progress_bars()
    logging.set_verbosity_error()


def _describe(system: Any, base: str, path: str, info: dict[str, Any]) -> SourceFile:
    if info.get("size") is None:
        info = system.info(path)  # a web server's listing has names only
    id = path.removeprefix(base.rstrip("/") + "/")
    version = next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), None) or system.ukey(path)
    return SourceFile(id, system.unstrip_protocol(path), info.get("size") or 0, version)


_VERSION_KEYS = ("ETag", "etag", "blob_id", "Last-Modified", "LastModified", "last_modified", "mtime")
"""Of S3 and the web, Google Cloud, the Hugging Face Hub, and others."""


def _persistently(url: str, action: Callable[[], T]) -> T:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except Exception as error:  # each protocol's package has errors of its own
            if getattr(error, "errno", None) == errno.ENOSPC:
                where = tempfile.gettempdir()
                raise InputError(f"{where}: no space for a copy of {url}; TMPDIR names another folder") from error
            # fsspec calls whatever goes wrong with a web page FileNotFoundError.
            cause = (error.__cause__ if isinstance(error, FileNotFoundError) else None) or error
            if attempt == ATTEMPTS or _is_final(cause):
                raise InputError(f"{url}: {_reason(cause)}") from error
        time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
    raise AssertionError("unreachable")


def _is_final(error: BaseException) -> bool:
    """Whether asking again is in vain."""
    status = _status(error)
    refused = status is not None and 400 <= status < 500 and status not in (408, 429)
    return refused or isinstance(error, FileNotFoundError | PermissionError | NotImplementedError)


def _reason(error: BaseException) -> str:
    status = _status(error)
    if status == 404 or isinstance(error, FileNotFoundError):
        return "there is no such file or folder, or none that may be read without logging in"
    if status in (401, 403) or isinstance(error, PermissionError):
        return "access is denied; log in, or give credentials the way its protocol does"
    lines = str(error).splitlines()
    return f"cannot be read ({type(error).__name__}{': ' + lines[0] if lines else ''})"


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error of aiohttp or of huggingface_hub."""
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None
