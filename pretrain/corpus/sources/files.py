"""Files of a source: found by globs in a local folder or behind a URL, and opened whatever compresses them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any

from pydantic import BeforeValidator, Field

from pretrain.corpus.sources.remote import is_url, list_remote, local_copy
from pretrain.corpus.sources.unit import SourceFile, Unit, group_into_units
from pretrain.errors import InputError
from pretrain.schema import Location, Section


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


Globs = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_as_tuple), Field(min_length=1)]
"""One glob or a list of them; `**` stands for any folders, and a name without wildcards for itself."""


class FileSource(Section):
    """Files under `root` that match a glob of `pattern`."""

    root: Location
    """The folder the files lie under, or its URL."""
    pattern: Globs
    """Relative to `root`. Only by name can files be had from a web server that lists no folders."""
    licence: str = "unknown"
    revision: str = ""
    """Whatever tells this state of the files from another: a version, a commit, a date."""

    @property
    def state(self) -> str:
        return self.revision

    def units(self) -> list[Unit]:
        return group_into_units(list_files(self.root, self.pattern))


def list_files(root: str, patterns: Iterable[str]) -> list[SourceFile]:
    """The files under `root` that match a pattern, each once, in the order of their ids.

    Raises:
        InputError: `root` cannot be listed, or a pattern is bad or matches nothing.
    """
    files: dict[str, SourceFile] = {}
    for pattern in patterns:
        found = list_remote(root, pattern) if is_url(root) else _list_local(Path(root), pattern)
        if not found:
            raise InputError(f"sources: no file in {root} matches {pattern!r}")
        files |= {file.id: file for file in found}
    return sorted(files.values(), key=lambda file: file.id)


def _list_local(root: Path, pattern: str) -> list[SourceFile]:
    if not root.is_dir():
        raise InputError(f"sources: root {root} is not a folder")
    try:
        for folder in _visited(root, pattern):
            if not os.access(folder, os.R_OK | os.X_OK, effective_ids=True):
                raise InputError(f"sources: folder {folder} cannot be read; change its permissions or the pattern")
        return local_files(root.glob(pattern), root)
    except (ValueError, NotImplementedError) as error:
        raise InputError(f"sources: pattern {pattern!r}: {error}") from error


def _visited(root: Path, pattern: str) -> Iterator[Path]:
    """The folders in which files are looked for; `glob` passes over those that it may not read."""
    yield root
    parts = Path(pattern).parts
    for count in range(1, len(parts)):
        yield from (path for path in root.glob(os.path.join(*parts[:count])) if path.is_dir())


def local_files(paths: Iterable[Path], root: Path, prefix: str = "") -> list[SourceFile]:
    """Those of `paths`, all below `root`, that are files, in the order of their ids (`prefix` + relative path)."""
    files = []
    for path in paths:
        if path.is_file():
            state = path.stat()
            id = prefix + printable_name(str(path.relative_to(root)))
            files.append(SourceFile(id, str(path), state.st_size, str(state.st_mtime_ns)))
    return sorted(files, key=lambda file: file.id)


def printable_name(name: str) -> str:
    """A file name as valid Unicode: on disks and in archives, names are any bytes."""
    return os.fsencode(name).decode(errors="backslashreplace")


@contextmanager
def reading(file: SourceFile) -> Iterator[Path]:
    """The file on the local disk, for the time of the context; whatever is wrong with it is an `InputError`."""
    import pyarrow as pa  # in functions here: every run imports this module, few read files by it

    try:
        with local_copy(file) as path:
            yield path
    except OSError as error:
        # Python's file functions set a number, decompressors do not.
        raise InputError(f"{file.path}: {error.strerror}" if error.errno else _damaged(file, error)) from error
    except (pa.ArrowException, *_DAMAGED) as error:
        raise InputError(_damaged(file, error)) from error


_DAMAGED = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError)
"""What the readers of formats raise, besides `OSError` and what pyarrow has of its own."""


def _damaged(file: SourceFile, error: Exception) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return f"{file.path}: damaged, cut short, or not what its name says ({reason})"


def open_decompressed(path: Path) -> IO[bytes]:
    """Open a file for reading; its last suffix says how it is compressed. Damage shows at the latest at its end."""
    opener = _OPENERS.get(path.suffix.lower())
    stream: IO[bytes] = opener(path) if opener else path.open("rb")
    return stream


def _open_zst(path: Path) -> IO[bytes]:
    import pyarrow as pa

    # Not the zstandard package: it ends silently after the first frame, and where a frame is cut short.
    return io.BufferedReader(pa.input_stream(str(path), compression="zstd"), 1 << 20)


def _open_zip(path: Path) -> IO[bytes]:
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        if len(members) != 1:
            raise zipfile.BadZipFile(f"it holds {len(members)} files, but a .zip is read as one compressed file")
        try:
            return archive.open(members[0])
        except RuntimeError as error:  # encrypted, or packed in a way that Python does not know
            raise zipfile.BadZipFile(str(error)) from error


_OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".tgz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".zst": _open_zst,
    ".zip": _open_zip,
}
