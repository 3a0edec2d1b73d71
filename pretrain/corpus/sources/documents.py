"""Rows and lines become documents."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import AfterValidator

from pretrain.corpus.sources.unit import Document, SourceFile
from pretrain.errors import InputError


def _check_regex(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"must be a regular expression, and {pattern!r} is none ({error})") from None
    return pattern


Regex = Annotated[str, AfterValidator(_check_regex)]


def join_rows(rows: Iterable[tuple[int, bytes]], file: SourceFile, document_start: str | None) -> Iterator[Document]:
    """Documents of the numbered rows of a file; a document is known by the number of its first row.

    Without `document_start` every row is a document. With it a row whose beginning matches it starts a document and
    the others are appended to the one before; a row that does not end its line is ended before the next one.
    """
    if document_start is None:
        yield from (Document(f"{file.id}:{number}", text) for number, text in rows)
        return
    starts = re.compile(document_start).match
    first = 0
    parts: list[bytes] = []
    for number, text in rows:
        if parts and starts(text.decode(errors="replace")):
            yield Document(f"{file.id}:{first}", b"".join(parts))
            parts = []
        if not parts:
            first = number
        elif not parts[-1].endswith(b"\n"):
            parts.append(b"\n")
        parts.append(text)
    if parts:
        yield Document(f"{file.id}:{first}", b"".join(parts))


def only_utf8(documents: Iterable[Document], file: SourceFile, skip_undecodable: bool) -> Iterator[Document]:
    """The documents of a file that are UTF-8; another one is left out or, by default, an `InputError`."""
    for document in documents:
        error = utf8_error(document.text)
        if error is None:
            yield document
        elif not skip_undecodable:
            place = file.path + document.id.removeprefix(file.id)
            raise InputError(f"{place}: not UTF-8 text ({error}); convert it, leave it out or set skip_undecodable")


def utf8_error(text: bytes) -> str | None:
    """What is wrong with `text` as UTF-8."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return f"byte {error.start} is 0x{text[error.start]:02x}: {error.reason}"
    return None
