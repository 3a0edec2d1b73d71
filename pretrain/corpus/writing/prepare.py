"""From sources to a corpus folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from rich.console import Console

from pretrain.console import MEGABYTES, Advance, show_progress
from pretrain.corpus.manifest import (
    FORMAT,
    MANIFEST_FILE,
    VERSION,
    FileEntry,
    Manifest,
    SourceEntry,
    SplitEntry,
    write_manifest,
)
from pretrain.corpus.sources.unit import Document, Unit
from pretrain.corpus.stream import open_corpus
from pretrain.corpus.tokenizers import Tokenizer, load_tokenizer
from pretrain.corpus.writing.baselines import SAMPLE_BYTES, measure_baselines
from pretrain.corpus.writing.config import PrepareConfig
from pretrain.corpus.writing.folder import partial_folder, publish
from pretrain.corpus.writing.shards import HashedFile, ShardWriter
from pretrain.corpus.writing.spool import DocumentSpool, split_documents
from pretrain.errors import InputError

SPOOL_FILE = "documents.spool"
ENCODED_BYTES = 4 << 20
"""Text handed to the tokenizer at once."""


def prepare_corpus(config: PrepareConfig, console: Console) -> tuple[Manifest, bool]:
    """Write the corpus folder `config.out`, or find that it holds this very corpus already.

    Returns:
        Its manifest, and whether it was written now.

    Raises:
        InputError: a source or the tokenizer is missing or bad, or `out` holds something else. Nothing is left behind.
    """
    listings = [source.units() for source in config.sources]
    tokenizer = load_tokenizer(config.tokenizer, config.end_token)
    inputs = _hash_inputs(config, listings, tokenizer)
    existing = _existing_manifest(config)
    if existing is not None and existing.inputs == inputs:
        return existing, False
    with partial_folder(config.out) as folder:
        spool = DocumentSpool(folder / SPOOL_FILE, config.deduplicate)
        sources = _collect(config, listings, spool, console)
        splits = split_documents(spool.hashes(), config.validation_fraction)
        fingerprint = _fingerprint(tokenizer, spool, splits)
        if existing is not None:
            # The files were touched, perhaps without changing a letter.
            if existing.fingerprint == fingerprint:
                return existing, False
            raise InputError(_other_corpus(config.out, "its sources have changed since"))
        entries = _write_splits(config, folder, spool, splits, tokenizer, console)
        spool.close()
        (folder / SPOOL_FILE).unlink()
        manifest = Manifest(
            format=FORMAT,
            version=VERSION,
            tokenizer=tokenizer.name,
            tokenizer_hash=tokenizer.hash,
            vocab_size=tokenizer.vocab_size,
            end_id=tokenizer.end_id,
            dtype=_dtype(tokenizer),
            shard_tokens=_shard_tokens(config, tokenizer),
            fingerprint=fingerprint,
            inputs=inputs,
            licence=" AND ".join(sorted({source.licence for source in config.sources})),
            sources=sources,
            splits=entries,
            tokenizer_files=_write_tokenizer(folder, tokenizer),
            config=_described(config),
        )
        write_manifest(manifest, folder)
        publish(folder, config.out)
    return manifest, True


def _existing_manifest(config: PrepareConfig) -> Manifest | None:
    out = config.out
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / MANIFEST_FILE).is_file():
        raise InputError(_other_corpus(out, "it is no corpus"))
    manifest = open_corpus(out).manifest
    if manifest.config != _described(config):
        raise InputError(_other_corpus(out, "it was prepared with another configuration"))
    return manifest


def _other_corpus(out: Path, reason: str) -> str:
    return f"out: {out} exists and {reason}; choose another `out` or remove it"


def _described(config: PrepareConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude={"out"})


def _hash_inputs(config: PrepareConfig, listings: list[list[Unit]], tokenizer: Tokenizer) -> str:
    """Changes with whatever could change the corpus, at the price of looking at names, sizes and times only."""
    revisions = [source.revision for source in config.sources]
    files = [[(file.id, file.bytes, file.version) for unit in units for file in unit.files] for units in listings]
    described = [FORMAT, VERSION, _described(config), tokenizer.hash, revisions, files]
    return xxhash.xxh3_128_hexdigest(json.dumps(described, sort_keys=True).encode())


def _fingerprint(tokenizer: Tokenizer, spool: DocumentSpool, splits: dict[str, np.ndarray]) -> str:
    digest = xxhash.xxh3_128(f"{FORMAT} {VERSION}, {tokenizer.hash}, end {tokenizer.end_id}".encode())
    for name, numbers in splits.items():
        digest.update(f", {name} {len(numbers)}: ".encode())
        digest.update(spool.hashes()[numbers].astype("<u8").tobytes())
    return digest.hexdigest()


def _collect(
    config: PrepareConfig, listings: list[list[Unit]], spool: DocumentSpool, console: Console
) -> list[SourceEntry]:
    """Put the documents of all sources into the spool; empty ones are left out."""
    entries = []
    total = sum(unit.bytes for units in listings for unit in units)
    with show_progress(console, "reading", total, MEGABYTES) as advance:
        for source, units in zip(config.sources, listings, strict=True):
            kept = duplicates = text_bytes = 0
            for document in chain.from_iterable(map(source.documents, units)):
                advance(len(document.text))
                if not document.text:
                    continue
                if spool.add(document):
                    kept += 1
                    text_bytes += len(document.text)
                else:
                    duplicates += 1
            entries.append(
                SourceEntry(
                    kind=source.kind,
                    revision=source.revision,
                    licence=source.licence,
                    files=sum(len(unit.files) for unit in units),
                    documents=kept,
                    duplicates=duplicates,
                    bytes=text_bytes,
                )
            )
    return entries


def _write_splits(
    config: PrepareConfig,
    folder: Path,
    spool: DocumentSpool,
    splits: dict[str, np.ndarray],
    tokenizer: Tokenizer,
    console: Console,
) -> dict[str, SplitEntry]:
    entries = {}
    for name, numbers in splits.items():
        writer = ShardWriter(folder, name, _dtype(tokenizer), _shard_tokens(config, tokenizer))
        with show_progress(console, f"tokenizing {name}", spool.text_bytes(numbers), MEGABYTES) as advance:
            _tokenize((spool.read(number) for number in numbers), tokenizer, writer, advance)
        shards = writer.close()
        entries[name] = SplitEntry(
            tokens=sum(shard.tokens for shard in shards),
            bytes=sum(shard.bytes for shard in shards),
            documents=len(numbers),
            shards=shards,
            baselines=measure_baselines(_first_text(spool, numbers)) if name == "validation" else None,
        )
    return entries


def _tokenize(documents: Iterable[Document], tokenizer: Tokenizer, writer: ShardWriter, advance: Advance) -> None:
    for batch in _batches(documents):
        for document, ids in zip(batch, tokenizer.encode_batch([d.text for d in batch]), strict=True):
            writer.add(document.id, np.append(ids, tokenizer.end_id), len(document.text))
            advance(len(document.text))


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= ENCODED_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _first_text(spool: DocumentSpool, numbers: np.ndarray) -> bytes:
    text = bytearray()
    for number in numbers:
        text += spool.read(number).text
        if len(text) >= SAMPLE_BYTES:
            break
    return bytes(text)


def _write_tokenizer(folder: Path, tokenizer: Tokenizer) -> dict[str, FileEntry]:
    entries = {}
    for name, content in tokenizer.files.items():
        file = HashedFile(folder / name)
        file.write(content)
        entries[name] = file.close()
    return entries


def _dtype(tokenizer: Tokenizer) -> Any:
    return "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"


def _shard_tokens(config: PrepareConfig, tokenizer: Tokenizer) -> int:
    return max(1, int(config.shard_mib * 2**20) // np.dtype(_dtype(tokenizer)).itemsize)
