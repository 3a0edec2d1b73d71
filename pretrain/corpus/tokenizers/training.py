"""Train a tokenizer on a sample of a corpus's own sources."""

from __future__ import annotations

import heapq
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import xxhash
from pydantic import Field
from rich.console import Console

from pretrain.console import MEGABYTES, Advance, show_progress
from pretrain.corpus.sources.unit import Document, SourceReader, Unit
from pretrain.corpus.splits import content_hash, is_validation
from pretrain.corpus.tokenizers import load_tokenizer
from pretrain.corpus.tokenizers.cutting import PIECE_BYTES, cut_at_newlines
from pretrain.errors import InputError
from pretrain.files import sync
from pretrain.schema import Section

if TYPE_CHECKING:
    from pretrain.corpus.writing.config import PrepareConfig

SUFFIXES = {"bpe": ".json", "sentencepiece": ".model"}
END_TOKENS = {"bpe": "<|endoftext|>", "sentencepiece": "</s>"}
READ_PER_SAMPLED = 10
"""How much text is looked at for each byte of the sample, at most: terabytes need not be read for 100 MB."""


class TokenizerTraining(Section):
    """What `prepare.py train-tokenizer` makes."""

    kind: Literal["bpe", "sentencepiece"] = "bpe"
    """Byte-level BPE of `tokenizers` (a `.json` file), or BPE of SentencePiece with byte fallback (`.model`)."""
    vocab_size: Annotated[int, Field(ge=262, le=1_000_000)]
    """All tokens, the end token among them. Up to 65536, a token takes two bytes on disk instead of four."""
    sample_mb: Annotated[float, Field(gt=0, le=100_000)] = 100
    """How much text to train on, in 10^6 bytes; it is held in memory."""


def train_tokenizer(config: PrepareConfig, console: Console) -> Path:
    """Train the tokenizer that `config.tokenizer` names on training documents, and write its file.

    The same sources give the same file, byte for byte.

    Raises:
        InputError: the configuration asks for no such training, the file exists, a source is missing or bad, there is
            too little text for so many tokens, or texts can have the end token in them. Nothing is left behind.
    """
    training, file = _check(config)
    texts = _sample(config, int(training.sample_mb * 1e6), console)
    if not any(texts):
        raise InputError("sources: no training document has text in it; there is nothing to train a tokenizer on")
    train = {"bpe": _train_bpe, "sentencepiece": _train_sentencepiece}[training.kind]
    end_token = config.end_token or END_TOKENS[training.kind]
    _write(file, train(texts, training.vocab_size, end_token, console), end_token)
    return file


def _write(file: Path, content: bytes, end_token: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".tmp-{file.name}")
    try:
        temporary.write_bytes(content)
        load_tokenizer(str(temporary), end_token)  # not every end token can be told from text
        sync(temporary)
        os.replace(temporary, file)
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
    except InputError as error:
        raise InputError(str(error).replace(temporary.name, file.name)) from None
    finally:
        temporary.unlink(missing_ok=True)


def _check(config: PrepareConfig) -> tuple[TokenizerTraining, Path]:
    training, file = config.tokenizer_training, Path(config.tokenizer)
    if training is None:
        raise InputError("tokenizer_training: is missing; it says what to train, for example {vocab_size: 32768}")
    suffix = SUFFIXES[training.kind]
    if file.suffix != suffix:
        raise InputError(
            f"tokenizer: must name the file to write, not be {config.tokenizer}; with tokenizer_training.kind "
            f"{training.kind} it ends in {suffix}"
        )
    if file.exists():
        raise InputError(f"tokenizer: {file} exists; remove it to train it again")
    return training, file


def _sample(config: PrepareConfig, size: int, console: Console) -> list[str]:
    """Training documents, `size` bytes of them at most: those with the smallest hashes."""
    listings = config.list_units()
    stored = [sum(unit.bytes for unit in units) for units in listings]
    # Each source counts by its size; where one does not say how large it is, all count alike.
    weights = stored if all(stored) else [1] * len(stored)
    limits = [READ_PER_SAMPLED * size * weight // sum(weights) for weight in weights]
    total = sum(min(bytes_, limit) if bytes_ else limit for bytes_, limit in zip(stored, limits, strict=True))
    sample = _SmallestHashes(size, distinct=config.deduplicate)
    with show_progress(console, "reading a sample", total, MEGABYTES) as advance:
        for source, units, limit in zip(config.sources, listings, limits, strict=True):
            for document in _some_documents(source, units, limit, advance):
                digest = content_hash(document.text)
                if not is_validation(digest, config.validation_fraction):
                    sample.offer(digest, document.text)
    return sample.texts()


def _some_documents(source: SourceReader, units: list[Unit], limit: int, advance: Advance) -> Iterator[Document]:
    """Documents of units in the order of their hashes, until `limit` bytes have been read."""
    read = 0
    for unit in sorted(units, key=lambda unit: _unit_hash(unit)):
        for document in source.documents(unit):
            advance(len(document.text))
            yield document
            read += len(document.text)
            if read >= limit:
                return


def _unit_hash(unit: Unit) -> bytes:
    return xxhash.xxh3_64_digest("\n".join(file.id for file in unit.files).encode())


class _SmallestHashes:
    """Keeps, of all texts offered, those with the smallest hashes, `size` bytes in all: a uniform sample in one pass,
    whatever the order of the texts. Of equal texts, `distinct` keeps one."""

    def __init__(self, size: int, distinct: bool):
        self._size = size
        self._distinct = distinct
        self._bytes = 0
        self._kept: set[bytes] = set()
        self._largest_first: list[tuple[int, bytes, bytes]] = []

    def offer(self, digest: bytes, text: bytes) -> None:
        if self._distinct and digest in self._kept:
            return
        self._kept.add(digest)
        heapq.heappush(self._largest_first, (-int.from_bytes(digest[8:], "big"), digest, text))
        self._bytes += len(text)
        # A text that is dropped here is dropped again whenever it comes back: what is kept only gets smaller hashes.
        while self._bytes - len(self._largest_first[0][2]) >= self._size:
            _, dropped, text = heapq.heappop(self._largest_first)
            self._kept.discard(dropped)
            self._bytes -= len(text)

    def texts(self) -> list[str]:
        """In the order of their hashes; the last one is cut to fit."""
        texts = [text for _, _, text in sorted(self._largest_first, reverse=True)]
        if self._bytes > self._size:
            texts[-1] = texts[-1][: self._size - self._bytes]
        return [text.decode(errors="ignore") for text in texts]


def _train_bpe(texts: Sequence[str], vocab_size: int, end_token: str, console: Console) -> bytes:
    """Byte-level BPE with Llama 3's pattern: digits in groups of three, line ends together with what they end."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    from pretrain.corpus.tokenizers.tiktoken import LLAMA3

    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[end_token],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=console.is_terminal,
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    if (found := tokenizer.get_vocab_size()) < vocab_size:
        raise _too_little_text(f"makes {found:,} tokens at most, not {vocab_size:,}")
    return tokenizer.to_str(pretty=True).encode()


def _train_sentencepiece(texts: Sequence[str], vocab_size: int, end_token: str, console: Console) -> bytes:
    """BPE that changes nothing about a text: no normalisation, no space put in front, unknown characters as bytes."""
    import sentencepiece

    model = io.BytesIO()
    sentences = (piece.decode() for text in texts for piece in cut_at_newlines(text.encode(), PIECE_BYTES))
    try:
        with console.status("training"):
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=sentences,
                model_writer=model,
                model_type="bpe",
                vocab_size=vocab_size,
                eos_piece=end_token,
                byte_fallback=True,
                split_digits=True,
                allow_whitespace_only_pieces=True,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                character_coverage=0.9999,
                max_sentence_length=1 << 30,  # longer ones would be left out
                num_threads=16,  # the model records it
                minloglevel=2,
            )
    except RuntimeError as error:
        _, _, reason = str(error).partition("] ")
        reason = " ".join((reason or str(error)).split()).strip(" .")
        if "ocabulary size" not in reason:
            raise InputError(f"tokenizer_training: sentencepiece cannot train this ({reason})") from error
        raise _too_little_text(f"does not suit sentencepiece: {reason}") from error
    return model.getvalue()


def _too_little_text(problem: str) -> InputError:
    return InputError(f"tokenizer_training.vocab_size: the sample {problem}; change it or tokenizer_training.sample_mb")
