"""What a model is evaluated on: splits of prepared corpora and plain text files, as streams of tokens."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pretrain.corpus import Corpus, Tokenizer, TokenStream
from pretrain.corpus.writing.baselines import Baselines, measure_baselines
from pretrain.corpus.writing.corpus import split_entry
from pretrain.corpus.writing.shards import ShardWriter, token_dtype
from pretrain.errors import InputError

SHARD_TOKENS = 1 << 24
COUNTED_TOKENS = 1 << 24
"""Of a longer text, words are counted in its first so many: documents are shuffled, so that is a fair sample."""


@dataclass(frozen=True)
class Text:
    """Documents end to end, with the end token behind each."""

    location: str
    """Folder, URL or file."""
    split: str | None
    """Of a corpus."""
    stream: TokenStream
    tokenizer: Tokenizer
    tokens_per_byte: float
    """Of the whole text: turns nats per token into bits per byte."""
    baselines: Baselines | None

    @cached_property
    def tokens_per_word(self) -> float:
        """Turns nats per token into nats per word, words being what white space separates. Takes a while to count.

        The first token counts for nothing: none predicts it.
        """
        tokens = min(len(self.stream), COUNTED_TOKENS)
        words = sum(len(document.split()) for document in self.documents(tokens))
        return (tokens - 1) / max(1, words)

    def documents(self, tokens: int) -> list[str]:
        """The documents of the first so many tokens, the last one as far as these go."""
        ids = self.stream.read(0, tokens)
        ends = np.flatnonzero(ids == self.tokenizer.end_id) + 1
        return [self.tokenizer.decode(document) for document in np.split(ids, ends)]


def corpus_text(corpus: Corpus, split: str) -> Text:
    """A split of a prepared corpus, which has it. Raises `InputError` where the tokenizer's file is damaged."""
    entry = corpus.manifest.splits[split]
    per_byte = entry.tokens / entry.bytes
    return Text(corpus.location, split, corpus.split(split), corpus.tokenizer(), per_byte, entry.baselines)


def files_text(files: Sequence[Path], tokenizer: Tokenizer, scratch: Path) -> Text:
    """UTF-8 files as the documents of one text; `scratch` is an empty folder for its tokens.

    An end token precedes the first document too, so that all tokens of the files are scored.

    Raises `InputError` where a file holds no text.
    """
    contents = [_read(file) for file in files]
    dtype = token_dtype(tokenizer.vocab_size)
    writer = ShardWriter(scratch, "text", dtype, SHARD_TOKENS)
    writer.add("", np.array([tokenizer.end_id]), 0)
    for file, content, ids in zip(files, contents, tokenizer.encode_batch(contents), strict=True):
        writer.add(str(file), np.append(ids, tokenizer.end_id), len(content))
    entry = split_entry(writer.close(), measure_baselines(b"".join(contents)))
    location = str(files[0]) if len(files) == 1 else os.path.commonpath([file.absolute().parent for file in files])
    stream = TokenStream(scratch, entry, dtype, SHARD_TOKENS)
    return Text(location, None, stream, tokenizer, (entry.tokens - 1) / entry.bytes, entry.baselines)


def _read(file: Path) -> bytes:
    try:
        content = file.read_bytes()
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--data: cannot read {file} as UTF-8 text: {error}") from error
    if not text.strip():
        raise InputError(f"--data: {file} holds no text")
    return content
