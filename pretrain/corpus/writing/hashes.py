"""The two hashes of a whole corpus: of what it is made from, and of what it holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import xxhash

from pretrain.corpus.manifest import FORMAT, VERSION
from pretrain.corpus.sources.unit import Unit
from pretrain.corpus.tokenizers import Tokenizer
from pretrain.corpus.writing.config import PrepareConfig


def hash_inputs(config: PrepareConfig, listings: Sequence[Sequence[Unit]], tokenizer: Tokenizer) -> str:
    """Changes with whatever could change the corpus, at the price of looking at names, sizes and times only."""
    states = [source.state for source in config.sources]
    files = [[(file.id, file.bytes, file.version) for unit in units for file in unit.files] for units in listings]
    described = [FORMAT, VERSION, config.decisive(), tokenizer.hash, states, files]
    return xxhash.xxh3_128_hexdigest(json.dumps(described, sort_keys=True).encode())


def fingerprint(tokenizer: Tokenizer, shard_tokens: int, splits: Mapping[str, tuple[int, Iterable[np.ndarray]]]) -> str:
    """Hash of all that decides the tokens, their order, and that of training samples, which shards take part in.

    Args:
        splits: the number of a split's documents, and arrays with the fields `side` and `place` of each, in order.
    """
    digest = xxhash.xxh3_128(
        f"{FORMAT} {VERSION}, {tokenizer.hash}, end {tokenizer.end_id}, shards {shard_tokens}".encode()
    )
    for name, (count, arrays) in splits.items():
        digest.update(f", {name} {count}: ".encode())
        for hashes in arrays:
            digest.update(np.stack([hashes["side"], hashes["place"]], axis=1).astype("<u8").tobytes())
    return digest.hexdigest()
