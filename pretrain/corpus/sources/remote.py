"""Files behind a URL: listed through fsspec, and copied whole to the local disk before they are read.

A copy makes every format readable from everywhere, and what the network does to a transfer ends here.
"""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from pretrain.corpus.download import Patience, TransferError, failure, open_file_system, persist, transfer
from pretrain.corpus.sources.unit import SourceFile
from pretrain.errors import InputError

PATIENCE = Patience(tries=4, first_delay=0.5, stall_seconds=60)
"""Less than for the shards of a run: what is wrong with a source is told to somebody who waits for it."""


def is_url(location: str) -> bool:
    return "://" in location


def list_remote(root: str, pattern: str) -> list[SourceFile]:
    """Files below the URL `root` that match a glob; none where nothing does.

    Raises:
        InputError: there is no such place, no way to reach it, or no package for its protocol.
    """
    system, base = open_file_system(root)
    path = f"{base.rstrip('/')}/{pattern}"

    def find() -> list[SourceFile]:
        try:
            if not glob.has_magic(pattern):
                return [_describe(system, base, path, system.info(path))]
            found = system.glob(path, detail=True)
            return [_describe(system, base, name, info) for name, info in found.items() if info["type"] == "file"]
        except Exception as error:  # each protocol's package has errors of its own
            raise failure(error) from error

    return persist(f"{root.rstrip('/')}/{pattern}", find, PATIENCE)


@contextmanager
def local_copy(file: SourceFile) -> Iterator[Path]:
    """The file on the local disk: where it lies, or a temporary copy of what its URL holds.

    Raises:
        InputError: it cannot be had whole.
    """
    if not is_url(file.path):
        yield Path(file.path)
        return
    with tempfile.TemporaryDirectory(prefix="pretrain-") as folder:
        path = Path(folder, "copy").with_suffix(PurePosixPath(urlsplit(file.path).path).suffix)

        def copy(chunks: Iterable[bytes]) -> None:
            with path.open("wb") as target:
                target.writelines(chunks)
            size = path.stat().st_size
            if file.bytes and size != file.bytes:
                raise TransferError(f"{size} of {file.bytes} bytes came")

        try:
            transfer(file.path, copy, PATIENCE)
        except OSError as error:
            raise InputError(f"{tempfile.gettempdir()}: {error.strerror}, for a copy of {file.path}") from error
        yield path


def _describe(system: Any, base: str, path: str, info: dict[str, Any]) -> SourceFile:
    if info.get("size") is None:
        info = system.info(path)  # a web server's listing has names only
    id = path.removeprefix(base.rstrip("/") + "/")
    version = next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), None) or system.ukey(path)
    return SourceFile(id, system.unstrip_protocol(path), info.get("size"), version)


_VERSION_KEYS = ("ETag", "etag", "blob_id", "Last-Modified", "LastModified", "last_modified", "mtime")
"""Of S3 and the web, Google Cloud, the Hugging Face Hub, and others."""
