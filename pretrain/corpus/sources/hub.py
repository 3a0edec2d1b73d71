"""Data sets that the `datasets` library knows how to load, streamed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pretrain.corpus.sources.dataset import TextDataset
from pretrain.corpus.sources.documents import Regex, join_rows
from pretrain.corpus.sources.unit import Document, SourceFile, Unit

if TYPE_CHECKING:
    from pretrain.corpus.sources.streamed_text import StreamedText


class HubDataset(TextDataset):
    """A data set of the Hugging Face Hub, or local data that `datasets` can load, streamed shard by shard.

    Every row is a document, or a part of one (`document_start`); rows whose field is null or empty are left out.
    """

    where: ClassVar[str] = "sources: "
    kind: Literal["hub"]
    document_start: Regex | None = None
    """Rows whose beginning matches this regular expression begin a new document, the others are appended to the one
    before; a document ends with its shard."""

    @property
    def state(self) -> str:
        """The commit that is read; empty for local data."""
        return _open(self).revision

    def units(self) -> list[Unit]:
        text = _open(self)
        location = f"{self.dataset}@{text.revision}" if text.revision else self.dataset
        names = [f"{self.split}/{number:05d}-of-{text.files:05d}" for number in range(text.files)]
        return [
            Unit((SourceFile(name, f"{location}/{name}", size or None, text.version),))
            for name, size in zip(names, text.sizes(), strict=True)
        ]

    def documents(self, unit: Unit) -> Iterator[Document]:
        for shard in unit.files:
            text = _open(self._pinned(shard.version))
            number = int(shard.id.rpartition("/")[2].partition("-")[0])
            contents = chain.from_iterable(rows.texts for rows in text.rows(number))
            rows = ((row, content) for row, content in enumerate(contents, start=1) if content)
            yield from join_rows(rows, shard, self.document_start)

    def _pinned(self, version: str) -> Self:
        """The data set at the commit a unit names, which every process is to read; local data ignores revisions."""
        return self.model_copy(update={"revision": version})


_opened: dict[HubDataset, StreamedText] = {}


def _open(source: HubDataset) -> StreamedText:
    """Listing the files of a data set takes seconds, hence once in a process."""
    if source not in _opened:
        from pretrain.corpus.sources.streamed_text import StreamedText

        text = StreamedText(source)
        _opened[source] = _opened[source._pinned(text.version)] = text
    return _opened[source]
