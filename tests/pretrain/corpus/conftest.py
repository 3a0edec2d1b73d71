"""Small corpora made through the public entrance."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from pretrain.corpus.manifest import SplitEntry
from pretrain.corpus.stream import TokenStream
from pretrain.corpus.writing.config import PrepareConfig
from pretrain.corpus.writing.prepare import prepare_corpus
from pretrain.corpus.writing.shards import ShardWriter
from pretrain.schema import validate

KIB = 1 / 1024


@pytest.fixture
def make_corpus(tmp_path: Path) -> Callable[..., Path]:
    """Write texts to files, prepare them, return the corpus folder."""

    def make(texts: Sequence[str], out: str = "corpus", **fields: Any) -> Path:
        root = tmp_path / f"{out}-text"
        root.mkdir(exist_ok=True)
        for number, text in enumerate(texts):
            (root / f"{number:04d}.txt").write_bytes(text.encode())
        source = {"kind": "text", "root": str(root)}
        config = {"out": str(tmp_path / out), "sources": [source], "shard_mib": KIB, "validation_fraction": 0.2}
        prepare_corpus(validate(PrepareConfig, config | fields), Console(file=io.StringIO()))
        return tmp_path / out

    return make


@pytest.fixture(scope="session")
def write_stream() -> Callable[[Path, np.ndarray, int], TokenStream]:
    """Write a stream of the given tokens, as one document, into a new folder."""

    def write(folder: Path, tokens: np.ndarray, shard_tokens: int) -> TokenStream:
        folder.mkdir()
        writer = ShardWriter(folder, "train", "uint16", shard_tokens)
        writer.add("document", tokens, text_bytes=len(tokens))
        split = SplitEntry(tokens=len(tokens), bytes=len(tokens), documents=1, shards=writer.close(), baselines=None)
        return TokenStream(folder, split, "uint16", shard_tokens)

    return write
