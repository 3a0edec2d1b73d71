"""Held-out text of a data set that is streamed, as a corpus with a validation split and no other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from rich.console import Console

from pretrain.console import MEGABYTES, show_progress
from pretrain.corpus.direct.config import StreamConfig
from pretrain.corpus.manifest import SourceEntry
from pretrain.corpus.sources.streamed_text import StreamedText
from pretrain.corpus.sources.unit import Document
from pretrain.corpus.splits import content_hash, hash_halves, is_validation
from pretrain.corpus.stream import open_corpus
from pretrain.corpus.tokenizers import Tokenizer, load_tokenizer
from pretrain.corpus.writing.baselines import measure_baselines
from pretrain.corpus.writing.corpus import finish_corpus, split_entry
from pretrain.corpus.writing.folder import keep_only, publish, work_folder
from pretrain.corpus.writing.hashes import fingerprint
from pretrain.corpus.writing.shards import ShardWriter, token_dtype
from pretrain.errors import InputError

SHARD_TOKENS = 1 << 24
PATIENCE = 4
"""Times the text that should hold `validation_bytes` of held-out text is looked through for it."""


@dataclass
class HeldOut:
    """Held-out documents, equal ones once, and what was looked at to find them."""

    documents: dict[bytes, Document] = field(default_factory=dict)
    """By the hash of their text."""
    text_bytes: int = 0
    duplicates: int = 0
    files: int = 0
    seen_documents: int = 0
    seen_bytes: int = 0


def write_validation(config: StreamConfig, out: Path, console: Console) -> None:
    """Write the first held-out documents of the data set as the corpus folder `out`, or find it written.

    They are read from the data set's beginning until there are `validation_bytes` of text; where held-out documents are
    rarer than `validation_fraction` by far, what has been found then has to do.

    Raises:
        InputError: the data set cannot be read or has no held-out document, or `out` holds something else.
    """
    tokenizer = load_tokenizer(config.tokenizer, config.end_token)
    described = config.model_dump(mode="json", exclude={"streams"})
    if out.exists() and any(out.iterdir()):
        manifest = open_corpus(out).manifest
        if manifest.config != described or manifest.tokenizer_hash != tokenizer.hash:
            raise InputError(f"data.stream: {out} was written with other settings; restore them or remove it")
        return
    text = StreamedText(config)
    held_out = _find(config, text, console)
    if not held_out.documents:
        raise InputError(
            f"data.stream.validation_fraction: none of the first {held_out.seen_documents:,} documents of "
            f"{config.dataset} ({held_out.seen_bytes / 1e6:.1f} MB) is held out by {config.validation_fraction:g}; "
            "must be larger"
        )
    with work_folder(out, console) as work:
        keep_only(work, [])
        folder = work / "corpus"
        folder.mkdir()
        _write(config, text.revision, described, tokenizer, held_out, folder)
        publish(folder, out)


def _find(config: StreamConfig, text: StreamedText, console: Console) -> HeldOut:
    found = HeldOut()
    enough = PATIENCE * config.validation_bytes / config.validation_fraction
    with show_progress(console, "holding out text for validation", config.validation_bytes, MEGABYTES) as advance:
        for document in _documents(text, found):
            found.seen_documents += 1
            found.seen_bytes += len(document.text)
            digest = content_hash(document.text)
            if digest in found.documents:
                found.duplicates += 1
            elif is_validation(digest, config.validation_fraction):
                found.documents[digest] = document
                found.text_bytes += len(document.text)
                advance(len(document.text))
            if found.text_bytes >= config.validation_bytes or found.seen_bytes >= enough:
                break
    return found


def _documents(text: StreamedText, found: HeldOut) -> Iterator[Document]:
    for file in range(text.files):
        found.files += 1
        for rows in text.rows(file):
            for number, content in enumerate(rows.texts, start=rows.first):
                if content:
                    yield Document(text.place(file, rows.group, number), content)


def _write(
    config: StreamConfig,
    revision: str,
    described: dict[str, Any],
    tokenizer: Tokenizer,
    held_out: HeldOut,
    folder: Path,
) -> None:
    documents = held_out.documents.values()
    texts = [document.text for document in documents]
    writer = ShardWriter(folder, "validation", token_dtype(tokenizer.vocab_size), SHARD_TOKENS)
    for document, ids in zip(documents, tokenizer.encode_batch(texts), strict=True):
        writer.add(document.id, np.append(ids, tokenizer.end_id), len(document.text))
    source = SourceEntry(
        kind="stream",
        revision=revision,
        licence=config.licence,
        files=held_out.files,
        documents=len(texts),
        duplicates=held_out.duplicates,
        bytes=held_out.text_bytes,
    )
    finish_corpus(
        folder,
        tokenizer,
        {"validation": split_entry(writer.close(), measure_baselines(b"".join(texts)))},
        shard_tokens=SHARD_TOKENS,
        fingerprint=_fingerprint(tokenizer, held_out),
        inputs=xxhash.xxh3_128_hexdigest(json.dumps([described, tokenizer.hash, revision]).encode()),
        licence=config.licence,
        sources=[source],
        config=described,
    )


def _fingerprint(tokenizer: Tokenizer, held_out: HeldOut) -> str:
    hashes = np.empty(len(held_out.documents), dtype=[("side", "<u8"), ("place", "<u8")])
    hashes["side"], hashes["place"] = hash_halves(b"".join(held_out.documents))
    return fingerprint(tokenizer, SHARD_TOKENS, {"validation": (len(hashes), [hashes])})
