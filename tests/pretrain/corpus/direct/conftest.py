"""Made-up documents, their tokens as a stream, and a tokenizer for them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from pretrain.corpus.manifest import SplitEntry
from pretrain.corpus.stream import TokenStream
from pretrain.corpus.writing.shards import ShardWriter


@pytest.fixture(scope="session")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small ByteLevel BPE tokenizer's file."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["abc abcd bcd dcb ab ä€ " * 20], trainer)
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    tokenizer.save(str(path))
    return str(path)


def made_up_texts(rng: random.Random, count: int) -> list[str]:
    """Texts of 0 to some 150 characters, most of them short, some of several bytes a character."""
    lengths = [rng.choice([0, 1, 1, 2, 5, 12, 30, 150]) for _ in range(count)]
    return ["".join(rng.choices("abcd ä€", k=length)) for length in lengths]


@pytest.fixture(scope="session", name="made_up_texts")
def made_up_texts_fixture() -> Callable[[random.Random, int], list[str]]:
    return made_up_texts


@pytest.fixture(scope="session")
def write_documents() -> Callable[[Path, Sequence[np.ndarray]], TokenStream]:
    """Write documents' tokens, end to end, as a stream into a new folder."""

    def write(folder: Path, documents: Sequence[np.ndarray]) -> TokenStream:
        folder.mkdir()
        tokens = sum(map(len, documents))
        writer = ShardWriter(folder, "train", "uint16", tokens)
        for number, document in enumerate(documents):
            writer.add(str(number), document, text_bytes=len(document))
        split = SplitEntry(tokens=tokens, bytes=tokens, documents=len(documents), shards=writer.close(), baselines=None)
        return TokenStream(folder, split, "uint16", tokens)

    return write
