"""Small corpora made through the public entrance."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from rich.console import Console
from tokenizers import decoders, models, pre_tokenizers, trainers

from pretrain.corpus import open_corpus
from pretrain.corpus.writing.config import PrepareConfig
from pretrain.corpus.writing.prepare import prepare_corpus
from pretrain.schema import validate

WORDS = ["def", "lambda x:", "naïve", "日本語", "🐍", "\r\n", "\t", "  ", "\ufeff", "<|endoftext|>", "0", "\0", "class"]
KIB = 1 / 1024


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of strange words, all different."""
    rng = random.Random(seed)
    return [f"{number} " + " ".join(rng.choices(WORDS, k=rng.randint(1, 120))) for number in range(count)]


@pytest.fixture(scope="session", name="make_texts")
def make_texts_fixture() -> Callable[..., list[str]]:
    return make_texts


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


@pytest.fixture
def read_documents() -> Callable[[Path, str], list[tuple[str, str]]]:
    """(id, text) of a split's documents, decoded from what the shards hold."""

    def read(folder: Path, split: str) -> list[tuple[str, str]]:
        corpus = open_corpus(folder)
        stream, tokenizer = corpus.split(split), corpus.tokenizer()
        ends = stream.document_ends()
        assert ends[-1] == len(stream) == corpus.manifest.splits[split].tokens
        starts = [0, *ends[:-1]]
        assert all(stream.read(end - 1, end)[0] == corpus.manifest.end_id for end in ends)
        texts = [tokenizer.decode(stream.read(start, end - 1)) for start, end in zip(starts, ends, strict=True)]
        return list(zip(stream.document_ids(), texts, strict=True))

    return read


@pytest.fixture
def bpe_file(tmp_path: Path) -> str:
    """A byte-level BPE of 300 tokens, `<|endoftext|>` = 1."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(make_texts(30), trainer)
    tokenizer.save(str(tmp_path / "bpe.json"))
    return str(tmp_path / "bpe.json")
