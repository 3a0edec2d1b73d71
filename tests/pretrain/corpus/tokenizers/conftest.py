"""Tokenizers trained on the source of the standard library, by the raw libraries."""

from __future__ import annotations

import io
import json
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from pretrain.corpus.tokenizers.tiktoken import GPT2


@pytest.fixture(scope="session")
def library() -> list[str]:
    """Some 800 kB of source code and prose."""
    folder = Path(sysconfig.get_path("stdlib"))
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob("[a-c]*.py"))]


@pytest.fixture(scope="session")
def train_bpe(library: list[str]) -> Callable[..., tokenizers.Tokenizer]:
    """train_bpe(vocab_size, pattern) -> a byte-level BPE of `tokenizers` that cuts words by `pattern`."""

    def train(vocab_size: int, pattern: str = GPT2) -> tokenizers.Tokenizer:
        tokenizer = tokenizers.Tokenizer(models.BPE())
        if pattern == GPT2:
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        else:
            split = pre_tokenizers.Split(Regex(pattern), "isolated")
            byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=["<pad>", "<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(library, trainer)
        assert tokenizer.get_vocab_size() == vocab_size
        return tokenizer

    return train


@pytest.fixture(scope="session")
def bpe_spec(train_bpe: Callable[..., tokenizers.Tokenizer]) -> str:
    """The `tokenizer.json` of a BPE of 1,000 tokens."""
    return train_bpe(1000).to_str()


@pytest.fixture
def edited_bpe(bpe_spec: str, tmp_path: Path) -> Callable[..., tuple[str, tokenizers.Tokenizer]]:
    """edited_bpe(change) -> the path of that tokenizer after `change(its JSON)`, and the raw tokenizer."""

    def edit(change: Callable[[Any], None]) -> tuple[str, tokenizers.Tokenizer]:
        spec = json.loads(bpe_spec)
        change(spec)
        path = tmp_path / "edited.json"
        path.write_text(json.dumps(spec))
        raw = tokenizers.Tokenizer.from_file(str(path))
        raw.encode_special_tokens = True
        return str(path), raw

    return edit


@pytest.fixture(scope="session")
def train_sentencepiece(library: list[str]) -> Callable[..., bytes]:
    """train_sentencepiece(**options) -> a serialised model of 1,000 pieces, by default SentencePiece's own defaults."""

    def train(**options: Any) -> bytes:
        model = io.BytesIO()
        lines = (line for text in library for line in text.splitlines())
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=model, minloglevel=2, **{"vocab_size": 1000} | options
        )
        return model.getvalue()

    return train
