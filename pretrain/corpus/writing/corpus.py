"""What makes a folder of shards a corpus: its splits, its tokenizer and, last of all, its manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.corpus.manifest import FORMAT, VERSION, Manifest, ShardEntry, SourceEntry, SplitEntry, write_manifest
from pretrain.corpus.tokenizers import Tokenizer
from pretrain.corpus.writing.baselines import Baselines
from pretrain.corpus.writing.files import write_tokenizer
from pretrain.corpus.writing.shards import token_dtype


def split_entry(shards: Sequence[ShardEntry], baselines: Baselines | None = None) -> SplitEntry:
    """A split made of the given shards."""
    return SplitEntry(
        tokens=sum(shard.tokens for shard in shards),
        bytes=sum(shard.bytes for shard in shards),
        documents=sum(shard.documents for shard in shards),
        shards=list(shards),
        baselines=baselines,
    )


def finish_corpus(
    folder: Path,
    tokenizer: Tokenizer,
    splits: dict[str, SplitEntry],
    *,
    shard_tokens: int,
    fingerprint: str,
    inputs: str,
    licence: str,
    sources: list[SourceEntry],
    config: dict[str, Any],
) -> Manifest:
    """Write tokenizer and manifest into the folder that holds the shards of `splits`; the fields are `Manifest`'s."""
    manifest = Manifest(
        format=FORMAT,
        version=VERSION,
        tokenizer=tokenizer.name,
        tokenizer_hash=tokenizer.hash,
        vocab_size=tokenizer.vocab_size,
        end_id=tokenizer.end_id,
        dtype=token_dtype(tokenizer.vocab_size),
        shard_tokens=shard_tokens,
        fingerprint=fingerprint,
        inputs=inputs,
        licence=licence,
        sources=sources,
        splits=splits,
        tokenizer_files=write_tokenizer(tokenizer, folder),
        config=config,
    )
    write_manifest(manifest, folder)
    return manifest
