"""Reads all of a remote corpus, in a shuffled order, as one process of a node: URL FOLDER MAX_BYTES SEED.

Prints the hash of its tokens.
"""

import sys
from pathlib import Path

import numpy as np
import xxhash

from pretrain.corpus import ShardCache, open_corpus
from pretrain.corpus.download import Patience

url, folder, max_bytes, seed = sys.argv[1:]
cache = ShardCache(Path(folder), int(max_bytes), Patience(first_delay=0.05, stall_seconds=5))
stream = open_corpus(url, cache).split("train")
starts = range(0, len(stream), stream.shard_tokens)
parts = {
    start: stream.read(start, min(start + stream.shard_tokens, len(stream)))
    for start in np.random.default_rng(int(seed)).permutation(starts).tolist()
}
print(xxhash.xxh64_hexdigest(b"".join(parts[start].tobytes() for start in starts)))
