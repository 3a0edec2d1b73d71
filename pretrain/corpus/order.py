"""The order in which samples are drawn: a function of the sample's number, without state.

A hierarchical block shuffle: blocks of neighbouring windows are permuted, and the windows of `GROUP_BLOCKS` consecutive
permuted blocks are shuffled among themselves. With blocks of a few shards, remote reading works through some dozens of
shards at a time, while neighbours of an epoch come from all over the corpus; a small corpus is shuffled whole. Every
permutation is a Feistel network with cycle walking (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"),
so that any place in any epoch is reached in constant time.
"""

from __future__ import annotations

import numpy as np
import xxhash

ORDER_VERSION = 2
"""Part of every key: raise it when the order changes, so that no run goes on in another order unnoticed."""
GROUP_BLOCKS = 8
ROUNDS = 6
GOLDEN_GAMMA = 0x9E3779B97F4A7C15
"""Increment of SplitMix64's state."""


def order_key(fingerprint: str, seed: int, copy: int = 0) -> int:
    """Key of the order of a corpus under one seed; `copy` tells apart several uses of it in one mixture."""
    what = f"sample order {ORDER_VERSION}, corpus {fingerprint}, seed {seed}, copy {copy}"
    return xxhash.xxh64_intdigest(what.encode())


class SampleOrder:
    """Sample numbers 0, 1, 2, ... -> windows 0 .. n-1. Every n in a row from a multiple of n are one epoch.

    Args:
        n: windows per epoch.
        key: 64 bits, from `order_key`.
        block_windows: neighbouring windows that stay together while blocks are permuted.
    """

    def __init__(self, n: int, key: int, block_windows: int):
        if n < 1 or block_windows < 1:
            raise ValueError(f"there is no order of {n} windows in blocks of {block_windows}")
        self.n = n
        self._key = key
        self._block_windows = block_windows
        self._blocks = -(-n // block_windows)
        self._missing = self._blocks * block_windows - n

    def index(self, samples: np.ndarray) -> np.ndarray:
        """Window of each sample number; int64 of any shape. Cheapest per sample in arrays of thousands."""
        samples = np.asarray(samples, dtype=np.int64)
        epoch, place = np.divmod(samples, self.n)
        block_key, group_key, short_position = self._epoch(epoch)
        group_windows = GROUP_BLOCKS * self._block_windows

        # The last block of the corpus lacks `missing` windows and lies anywhere in the permuted sequence. Places count
        # as if it were full: those in later groups move up here, those behind it in its own group after the shuffle.
        short_group = short_position // GROUP_BLOCKS
        place = place + self._missing * (place >= (short_group + 1) * group_windows - self._missing)
        group, within = np.divmod(place, group_windows)
        size = np.minimum(group_windows, self._blocks * self._block_windows - group * group_windows)
        size = size - self._missing * (group == short_group)
        within = permute(within, size, mix(group_key ^ mix(group.astype(np.uint64))))
        short_end = (short_position - group * GROUP_BLOCKS + 1) * self._block_windows - self._missing
        within = within + self._missing * ((group == short_group) & (within >= short_end))

        position, offset = np.divmod(group * group_windows + within, self._block_windows)
        return permute(position, self._blocks, block_key) * self._block_windows + offset

    def _epoch(self, epoch: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Keys of the block and group permutations of each epoch, and the permuted position of the last block."""
        distinct, where = np.unique(epoch, return_inverse=True)
        key = mix(np.uint64(self._key) ^ mix(distinct.astype(np.uint64)))
        block_key, group_key = mix(key ^ np.uint64(1)), mix(key ^ np.uint64(2))
        short_position = permute(np.full(len(distinct), self._blocks - 1), self._blocks, block_key, inverse=True)
        where = where.reshape(epoch.shape)
        return block_key[where], group_key[where], short_position[where]


def permute(values: np.ndarray, n: np.ndarray | int, key: np.ndarray, inverse: bool = False) -> np.ndarray:
    """Pseudo-random permutation of 0 .. n-1 under `key`, elementwise; int64. `n` and `key` broadcast to `values`."""
    values = np.asarray(values)
    n, key = np.broadcast_to(n, values.shape).ravel(), np.broadcast_to(key, values.shape).ravel()
    half = (_bit_length(n - 1) + np.uint64(1)) >> np.uint64(1)
    result = values.astype(np.uint64).ravel()
    outside = np.arange(result.size)
    # The network permutes 4**half >= n values; walking its cycle until it is back below n permutes those below n.
    while outside.size:
        result[outside] = _feistel(result[outside], half[outside], key[outside], inverse)
        outside = outside[result[outside] >= n[outside].astype(np.uint64)]
    return result.astype(np.int64).reshape(values.shape)


def _feistel(values: np.ndarray, half: np.ndarray, key: np.ndarray, inverse: bool) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for number in reversed(range(ROUNDS)) if inverse else range(ROUNDS):
        round_key = key + np.uint64(number * GOLDEN_GAMMA % 2**64)
        if inverse:
            left, right = right ^ (mix(left ^ round_key) & mask), left
        else:
            left, right = right, left ^ (mix(right ^ round_key) & mask)
    return left << half | right


def mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele, Lea and Flood 2014): a bijection of 64-bit words that looks random."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(GOLDEN_GAMMA)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _bit_length(x: np.ndarray) -> np.ndarray:
    # frexp is exact below 2**53, far above any number of windows.
    return np.frexp(x.astype(np.float64))[1].astype(np.uint64)
