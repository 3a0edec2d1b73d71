"""Sources made through the schema, and a Hub of local folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pretrain.corpus.sources import Source
from pretrain.corpus.sources.unit import Document, SourceReader
from pretrain.schema import Section, validate

HERE = Path(__file__).parent
PROJECT = HERE.parents[3]


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
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """The folder of a local Hub's repositories, and the environment of processes that are to use it."""
    root = tmp_path_factory.mktemp("hub")
    command = [sys.executable, str(HERE / "hub_server.py"), str(root)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        home = str(tmp_path_factory.mktemp("hf-home"))
        yield root, os.environ | {"HF_ENDPOINT": url, "HF_HOME": home, "PYTHONPATH": str(PROJECT)}
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="session")
def read_with_hub(hub: tuple[Path, dict[str, str]]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """read_with_hub({name: source}): what each holds, or its error, read by a process that must print nothing else."""

    def read(sources: dict[str, Any]) -> dict[str, Any]:
        command = [sys.executable, str(HERE / "read_sources.py")]
        process = subprocess.run(
            command, env=hub[1], input=json.dumps(sources), capture_output=True, text=True, timeout=120
        )
        assert process.returncode == 0 and process.stderr == "", process.stderr
        return json.loads(process.stdout)

    return read
