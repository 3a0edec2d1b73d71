"""What must hold of a run's token corpora before it starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pretrain.corpus import Windows
from pretrain.corpus.config import CorpusRunConfig
from pretrain.corpus.direct.config import StreamConfig
from pretrain.corpus.tokenizers import load_tokenizer
from pretrain.data import PreparedData, corpus_locations, open_corpora
from pretrain.errors import InputError, Unavailable


def corpus_problems(config: CorpusRunConfig, world_size: int) -> Iterator[str]:
    """What is wrong with the data of a run of `world_size` ranks, or with the model for it, one line each.

    Raises Unavailable where a server cannot be reached now.
    """
    if config.data.stream is not None:
        yield from _stream_problems(config, config.data.stream, world_size)
        return
    try:
        data = PreparedData(config)
    except Unavailable:
        raise
    except InputError as error:
        yield str(error)
        return
    for part in data.samples.parts:
        field, location = corpus_locations(config)[part.name]
        manifest = data.corpora[part.name].manifest
        yield from _tokenizer_problems(config, manifest.tokenizer, manifest.vocab_size, location)
        yield from _size_problems(config, field, location, manifest.splits["train"].tokens, part.windows)
    yield from _mixture_problems(config, data)


def _stream_problems(config: CorpusRunConfig, stream: StreamConfig, world_size: int) -> Iterator[str]:
    try:
        stream.check_division(config.train.global_batch, world_size)
    except InputError as error:
        yield str(error)
    try:
        tokenizer = load_tokenizer(stream.tokenizer, stream.end_token)
    except InputError as error:
        yield f"data.stream.{error}"
    else:
        yield from _tokenizer_problems(config, tokenizer.name, tokenizer.vocab_size, stream.dataset)


def _size_problems(config: CorpusRunConfig, field: str, location: str, tokens: int, windows: Windows) -> Iterator[str]:
    if config.data.windows != "crop" and tokens <= config.context:
        yield (
            f"{field}: the train split of {location} has {tokens} tokens, one window needs "
            f"model.max_seq_len + 1 = {config.context + 1}: add text, or lower model.max_seq_len"
        )
    elif config.data.mixture is None and len(windows) < config.train.global_batch:
        yield (
            f"train.global_batch: {config.train.global_batch} is more than the {len(windows)} windows of the train "
            f"split of {location}: add text, or lower train.global_batch"
        )


def _tokenizer_problems(config: CorpusRunConfig, tokenizer: str, vocab_size: int, origin: str) -> Iterator[str]:
    if config.data.tokenizer not in (None, tokenizer):
        yield (
            f"data.tokenizer: is {config.data.tokenizer}, but the tokens of {origin} are those of {tokenizer}: "
            "set data.tokenizer to that, or use other data"
        )
    if vocab_size > config.vocab_size:
        yield (
            f"model.vocab_size: {config.vocab_size} is too small for the tokens of {origin}, "
            f"it must be at least {vocab_size}"
        )


def _mixture_problems(config: CorpusRunConfig, data: PreparedData) -> Iterator[str]:
    epochs = data.samples.epochs(config.train.steps * config.train.global_batch)
    for name, part in (config.data.mixture or {}).items():
        if (last := max(part.weight)) >= config.train.steps:
            yield (
                f"data.mixture.{name}.weight: step {last} is never reached, train.steps is {config.train.steps}: "
                "leave it out, or train longer"
            )
        if part.max_epochs is not None and epochs[name] > part.max_epochs:
            yield (
                f"data.mixture.{name}.max_epochs: {config.train.steps} steps would read {part.corpus} "
                f"{epochs[name]:.2f} times, not at most {part.max_epochs:g}: lower its weight or train.steps"
            )


class Tokens(NamedTuple):
    """What a part of the data is made of."""

    origin: str
    tokenizer: str
    tokenizer_hash: str
    vocab_size: int


def tokens_of(config: CorpusRunConfig) -> Iterator[Tokens]:
    """Of all that is trained on. Raises InputError where it cannot be opened."""
    if (stream := config.data.stream) is not None:
        tokenizer = load_tokenizer(stream.tokenizer, stream.end_token)
        yield Tokens(stream.dataset, tokenizer.name, tokenizer.hash, tokenizer.vocab_size)
        return
    for name, corpus in open_corpora(config).items():
        manifest = corpus.manifest
        _, location = corpus_locations(config)[name]
        yield Tokens(location, manifest.tokenizer, manifest.tokenizer_hash, manifest.vocab_size)
