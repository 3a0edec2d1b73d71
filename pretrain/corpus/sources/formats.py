"""Formats of files: how documents lie in them."""

from __future__ import annotations

import json
import re
import tarfile
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Literal, Self

from fsspec.utils import glob_translate

from pretrain.corpus.sources.documents import Regex, join_rows, only_utf8
from pretrain.corpus.sources.files import FileSource, Globs, open_decompressed, printable_name, reading
from pretrain.corpus.sources.unit import Document, SourceFile, Unit
from pretrain.errors import InputError


class TextFiles(FileSource):
    """UTF-8 text, compressed or not: a file is a document, or holds many that begin at lines of one kind."""

    kind: Literal["text"]
    pattern: Globs = ("**/*.txt",)
    document_start: Regex | None = None
    """Lines whose beginning matches this regular expression begin a new document; it ends where the next begins."""
    skip_undecodable: bool = False
    """Leave out documents that are not UTF-8, instead of stopping at them."""

    def documents(self, unit: Unit) -> Iterator[Document]:
        for file in unit.files:
            with reading(file) as path, open_decompressed(path) as stream:
                documents: Iterable[Document] = (
                    [Document(file.id, stream.read())]
                    if self.document_start is None
                    else join_rows(enumerate(stream, start=1), file, self.document_start)
                )
                yield from only_utf8(documents, file, self.skip_undecodable)


class RowFiles(FileSource):
    """Files of rows, each with text in one field; rows in which it is null or empty are left out."""

    field: str = "text"
    document_start: Regex | None = None
    """Rows whose beginning matches this regular expression begin a new document, the others are appended to the one
    before; by default every row is a document."""

    def documents(self, unit: Unit) -> Iterator[Document]:
        for file in unit.files:
            with reading(file) as path:
                yield from join_rows(self._rows(path, file), file, self.document_start)

    @abstractmethod
    def _rows(self, path: Path, file: SourceFile) -> Iterator[tuple[int, bytes]]:
        """Number, from 1, and text of the rows of `file`, whose content lies at `path`."""


class JsonLines(RowFiles):
    """Every line is a JSON object with one document's text in a field, or in a field of a field (`meta.text`)."""

    kind: Literal["jsonl"]
    pattern: Globs = ("**/*.jsonl",)

    def _rows(self, path: Path, file: SourceFile) -> Iterator[tuple[int, bytes]]:
        with open_decompressed(path) as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip() and (text := self._text(line, f"{file.path}:{number}")):
                    yield number, text

    def _text(self, line: bytes, place: str) -> bytes:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place}: not a JSON object with the field {self.field!r} ({error})") from error
        for name in self.field.split("."):
            if not isinstance(value, dict) or name not in value:
                there = f"; there are {', '.join(value)}" if isinstance(value, dict) else ""
                raise InputError(f"{place}: not a JSON object with the field {self.field!r}{there}")
            value = value[name]
        if value is None:
            return b""
        if not isinstance(value, str):
            raise InputError(f"{place}: field {self.field!r} is {type(value).__name__}, not text")
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{place}: field {self.field!r} is not valid Unicode ({error.reason})") from error


class ParquetFiles(RowFiles):
    """Parquet files with text in one column; no other column is read."""

    kind: Literal["parquet"]
    pattern: Globs = ("**/*.parquet",)

    def _rows(self, path: Path, file: SourceFile) -> Iterator[tuple[int, bytes]]:
        from pretrain.corpus.sources.columns import parquet_rows

        return parquet_rows(path, self.field, file)


class ArrowFiles(RowFiles):
    """Arrow IPC files with text in one column: the file format, or the stream format of `Dataset.save_to_disk`."""

    kind: Literal["arrow"]
    pattern: Globs = ("**/*.arrow",)

    def _rows(self, path: Path, file: SourceFile) -> Iterator[tuple[int, bytes]]:
        from pretrain.corpus.sources.columns import arrow_rows

        return arrow_rows(path, self.field, file)


class TarArchives(FileSource):
    """Tar archives, compressed or not: every regular file in them that matches is a document.

    They are streamed. Nothing is unpacked, and links, devices and folders in them are passed over.
    """

    kind: Literal["tar"]
    pattern: Globs = ("**/*.tar*",)
    members: Globs = ("**",)
    """Which files in the archives to take: globs of their whole paths."""
    skip_undecodable: bool = False
    """Leave out members that are not UTF-8, instead of stopping at them."""

    def documents(self, unit: Unit) -> Iterator[Document]:
        for file in unit.files:
            with reading(file) as path, open_decompressed(path) as stream:
                yield from only_utf8(self._members(stream, file), file, self.skip_undecodable)
                while stream.read(1 << 20):  # checksums of compressed files come last
                    pass

    def _members(self, stream: IO[bytes], file: SourceFile) -> Iterator[Document]:
        wanted = re.compile("|".join(map(glob_translate, self.members)))
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_StrictMember, encoding="utf-8") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would remember every member
                name = printable_name(member.name.removeprefix("./"))
                if member.isreg() and wanted.match(name):
                    content: Any = archive.extractfile(member)
                    yield Document(f"{file.id}:{name}", content.read())


class _StrictMember(tarfile.TarInfo):
    """A member's header. tarfile takes a bad one, and the end of the file, for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error}, where a member or the end of the archive should be") from error
