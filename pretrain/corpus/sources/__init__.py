"""Where documents come from."""

from __future__ import annotations

import json
import os
import platform
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pretrain.corpus.sources.unit import Document, SourceFile, Unit, group_into_units
from pretrain.errors import InputError
from pretrain.schema import FilePath, Section


class PythonStandardLibrary(Section):
    """Source code of the running interpreter's standard library and, where installed, its documentation.

    Files that are not UTF-8 are left out.
    """

    kind: Literal["python_stdlib"]
    licence: str = "PSF-2.0"

    @property
    def revision(self) -> str:
        return f"Python {platform.python_version()}"

    def units(self) -> list[Unit]:
        library = Path(sysconfig.get_path("stdlib"))
        # Tests of the library are packaged apart on Debian and others: left out, the corpus is the same everywhere.
        left_out = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
        code = [p for p in library.rglob("*.py") if not left_out.intersection(p.relative_to(library).parts)]
        documentation = Path("/usr/share/doc", f"python{sysconfig.get_python_version()}", "html", "_sources")
        files = _listed(code, library, prefix="lib/") + _listed(documentation.rglob("*.txt"), documentation, "doc/")
        return group_into_units(files)

    def documents(self, unit: Unit) -> Iterator[Document]:
        for file in unit.files:
            text = Path(file.path).read_bytes()
            if _utf8_error(text) is None:
                yield Document(file.id, text)


class FileSource(Section):
    """Files under `root` that match the glob `files`."""

    root: FilePath
    """The folder the files lie under."""
    pattern: str
    licence: str = "unknown"
    revision: str = ""
    """Whatever tells this state of the files from another: a version, a commit, a date."""

    def units(self) -> list[Unit]:
        if not self.root.is_dir():
            raise InputError(f"sources: root {self.root} is not a folder")
        try:
            found = _listed(self.root.glob(self.pattern), self.root)
        except (ValueError, NotImplementedError) as error:
            raise InputError(f"sources: pattern {self.pattern!r}: {error}") from error
        if not found:
            raise InputError(f"sources: no file in {self.root} matches {self.pattern!r}")
        return group_into_units(found)


class TextFiles(FileSource):
    """Every file is one document, UTF-8."""

    kind: Literal["text"]
    pattern: str = "**/*.txt"
    """Glob relative to `root`; `**` stands for any folders."""

    def documents(self, unit: Unit) -> Iterator[Document]:
        for file in unit.files:
            text = Path(file.path).read_bytes()
            if error := _utf8_error(text):
                raise InputError(f"{file.path}: not UTF-8 text ({error}); convert it or leave it out of the source")
            yield Document(file.id, text)


class JsonLines(FileSource):
    """Every line of a file is a JSON object with one document's text in a field."""

    kind: Literal["jsonl"]
    pattern: str = "**/*.jsonl"
    """Glob relative to `root`; `**` stands for any folders."""
    field: str = "text"

    def documents(self, unit: Unit) -> Iterator[Document]:
        for file in unit.files:
            with open(file.path, "rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        yield Document(f"{file.id}:{number}", self._text(line, f"{file.path}:{number}"))

    def _text(self, line: bytes, place: str) -> bytes:
        try:
            text = json.loads(line)[self.field]
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{place}: not a JSON object with the field {self.field!r}") from error
        if not isinstance(text, str):
            raise InputError(f"{place}: field {self.field!r} is {type(text).__name__}, not text")
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{place}: field {self.field!r} is not valid Unicode ({error.reason})") from error


Source = Annotated[PythonStandardLibrary | TextFiles | JsonLines, Field(discriminator="kind")]


def _listed(paths: Iterable[Path], root: Path, prefix: str = "") -> list[SourceFile]:
    files = []
    for path in paths:
        if path.is_file():
            state = path.stat()
            id = prefix + os.fsencode(path.relative_to(root)).decode(errors="backslashreplace")
            files.append(SourceFile(id, str(path), state.st_size, str(state.st_mtime_ns)))
    return sorted(files, key=lambda file: file.id)


def _utf8_error(text: bytes) -> UnicodeDecodeError | None:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return error
    return None
