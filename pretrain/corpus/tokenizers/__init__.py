"""Text to token ids and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from pretrain.corpus.tokenizers.byte import BYTES, ByteTokenizer
from pretrain.errors import InputError

__all__ = ["BYTES", "Tokenizer", "load_saved_tokenizer", "load_tokenizer"]


class Tokenizer(Protocol):
    """Ids of a text carry no special tokens; whoever writes documents puts `end_id` after each.

    They are a function of the text alone: not of the batch it is in, nor of what computes them. Texts over 1 MiB are
    encoded in pieces cut at newlines, which is part of that function.
    """

    name: str
    hash: str
    vocab_size: int
    end_id: int

    @property
    def engine(self) -> str:
        """What computes the ids: numpy, tokenizers, tiktoken or sentencepiece."""

    @property
    def files(self) -> dict[str, bytes]:
        """What a corpus keeps of it, by file name; empty where `name` says it all."""

    def encode(self, text: str | bytes) -> np.ndarray:
        """Token ids, int64. Bytes are UTF-8."""

    def encode_batch(self, texts: Sequence[bytes]) -> list[np.ndarray]: ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of the ids; special tokens have none."""


# Each library is imported by who needs it: together they take a good part of a second in every worker process.


def load_tokenizer(name: str, end_token: str | None = None) -> Tokenizer:
    """Load "bytes", a SentencePiece `.model`, a `tokenizer.json` (or its folder), or a tokenizer of the Hub.

    Raises:
        InputError: there is none, it cannot be read, or it has no end token.
    """
    if name == BYTES:
        if end_token is not None:
            raise InputError("end_token: the tokenizer 'bytes' has its own end token; leave the field out")
        return ByteTokenizer()
    if name.endswith(".model"):
        from pretrain.corpus.tokenizers.sentencepiece import SentencePieceTokenizer

        return SentencePieceTokenizer.load(name, end_token)
    from pretrain.corpus.tokenizers.huggingface import HuggingFaceTokenizer

    return HuggingFaceTokenizer.load(name, end_token)


def load_saved_tokenizer(folder: Path, name: str, end_id: int) -> Tokenizer:
    """Load a tokenizer from its `files`, written into a folder: the one that a corpus was prepared with."""
    if name == BYTES:
        return ByteTokenizer()
    if name.endswith(".model"):
        from pretrain.corpus.tokenizers.sentencepiece import MODEL_FILE, SentencePieceTokenizer

        return SentencePieceTokenizer.load_saved(folder / MODEL_FILE, name, end_id)
    from pretrain.corpus.tokenizers.huggingface import TOKENIZER_FILE, HuggingFaceTokenizer

    return HuggingFaceTokenizer.load_saved(folder / TOKENIZER_FILE, name, end_id)
