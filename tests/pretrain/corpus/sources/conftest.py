"""Sources made through the schema, and a Hub of local folders."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pretrain.corpus.sources import Source
from pretrain.corpus.sources.unit import Document, SourceReader
from pretrain.schema import Section, validate


class Sources(Section):
    sources: list[Source]


@pytest.fixture(scope="session")
def make_source() -> Callable[..., SourceReader]:
    """make_source(kind, field=value, ...): a source as the YAML file of a corpus would have it."""

    def make(kind: str, **fields: Any) -> SourceReader:
        source = {"kind": kind} | {name: str(v) if isinstance(v, Path) else v for name, v in fields.items()}
        return validate(Sources, {"sources": [source]}).sources[0]

    return make


@pytest.fixture(scope="session")
def read_all() -> Callable[[SourceReader], list[Document]]:
    def read(source: SourceReader) -> list[Document]:
        return [document for unit in source.units() for document in source.documents(unit)]

    return read


@pytest.fixture(scope="session")
def hub(
    tmp_path_factory: pytest.TempPathFactory, start_hub: Callable[[Path], dict[str, str]]
) -> tuple[Path, dict[str, str]]:
    """The folder of a local Hub's repositories, and the environment of processes that are to use it."""
    root = tmp_path_factory.mktemp("hub")
    return root, start_hub(root)


@pytest.fixture(scope="session")
def read_with_hub(
    hub: tuple[Path, dict[str, str]], read_sources: Callable[..., dict[str, Any]]
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """read_with_hub({name: source}): what each holds, or its error."""
    return partial(read_sources, environment=hub[1])
