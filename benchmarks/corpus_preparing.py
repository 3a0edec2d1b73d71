"""Preparing corpora from a folder of text files, timed beside the raw tokenizer on the same documents, in turns."""

from __future__ import annotations

import io
import itertools
import shutil
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tokenizers
from rich.console import Console
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from benchmarks.corpus_reading import spread
from pretrain.corpus.tokenizers import load_tokenizer
from pretrain.corpus.writing.config import PrepareConfig
from pretrain.corpus.writing.prepare import prepare_corpus
from pretrain.schema import validate

VOCABULARY = 32_768
END_TOKEN = "<|endoftext|>"
BATCH_DOCUMENTS = 1000
FILES_PER_FOLDER = 1000


def varied_texts() -> Iterator[str]:
    """The standard library's source files, over and over: each time every file begins at another of its lines."""
    library = Path(sysconfig.get_path("stdlib"))
    files = sorted(path for path in library.rglob("*.py") if "-packages" not in str(path.relative_to(library)))
    for turn in itertools.count():
        for file in files:
            # The library's tests include files in other encodings.
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            first = turn * 37 % max(1, len(lines))
            yield "".join([f"# variant {turn}\n", *lines[first:], *lines[:first]])


def write_texts(folder: Path, size: int) -> list[str]:
    """Files of UTF-8 text, at least `size` bytes in all; their texts."""
    texts: list[str] = []
    for text in varied_texts():
        path = folder / str(len(texts) // FILES_PER_FOLDER) / f"{len(texts)}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        size -= path.write_bytes(text.encode())
        texts.append(text)
        if size <= 0:
            break
    return texts


def train_tokenizers(folder: Path, texts: list[str], size: int) -> tuple[Path, Path]:
    """Byte-level BPE trained on the first `size` characters, and the same behind a normalizer that does nothing.

    The second has the same ids and the same speed, but is not of the form that tiktoken is proved to equal.
    """
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    lengths = itertools.accumulate(len(text) for text in texts)
    sample = [text for text, end in zip(texts, lengths, strict=True) if end <= size]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample, trainer)
    plain, disguised = folder / "bpe.json", folder / "bpe-disguised.json"
    tokenizer.save(str(plain))
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.save(str(disguised))
    return plain, disguised


def prepare(folder: Path, texts: Path, tokenizer: str) -> None:
    """Prepare the texts into a new corpus, with as many processes as there are cores; then remove it."""
    out = folder / "prepared"
    fields = {"out": str(out), "sources": [{"kind": "text", "root": str(texts)}], "tokenizer": tokenizer}
    prepare_corpus(validate(PrepareConfig, fields), Console(file=io.StringIO()))
    shutil.rmtree(out)


def encode_raw(tokenizer: tokenizers.Tokenizer, texts: list[str]) -> None:
    """All cores: the library's own threads."""
    for start in range(0, len(texts), BATCH_DOCUMENTS):
        tokenizer.encode_batch_fast(texts[start : start + BATCH_DOCUMENTS], add_special_tokens=False)


def measure_preparing(folder: Path, size: int, turns: int) -> dict[str, Any]:
    """Megabytes of text per second of every way, by its name. `prepare` is the whole of it, from files to shards."""
    root = folder / "texts"
    texts = write_texts(root, size)
    plain, disguised = train_tokenizers(folder, texts, size // 10)
    engines = [load_tokenizer(str(file)).engine for file in (plain, disguised)]
    raw = tokenizers.Tokenizer.from_file(str(plain))
    ways: dict[str, Callable[[], None]] = {
        "prepare, bytes": lambda: prepare(folder, root, "bytes"),
        "raw tokenizers.encode_batch_fast": lambda: encode_raw(raw, texts),
        f"prepare, BPE by {engines[1]}": lambda: prepare(folder, root, str(disguised)),
        f"prepare, BPE by {engines[0]}": lambda: prepare(folder, root, str(plain)),
    }
    text_bytes = sum(file.stat().st_size for file in root.rglob("*.txt"))
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(turns):
        for way, action in ways.items():
            began = time.perf_counter()
            action()
            rates[way].append(text_bytes / 1e6 / (time.perf_counter() - began))
    return {"text_mb": text_bytes / 1e6, "documents": len(texts)} | {way: spread(r) for way, r in rates.items()}
