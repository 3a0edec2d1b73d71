import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pretrain.corpus.order import GROUP_BLOCKS, SampleOrder, order_key, permute

BLOCK = 16
GROUP = BLOCK * GROUP_BLOCKS
KEY = order_key("0123456789abcdef", seed=1)
GOLDEN_KEY = 9569017102640175157
GOLDEN = {  # (n, key, block_windows, first sample): windows
    (1, GOLDEN_KEY, 1, 0): [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    (2, GOLDEN_KEY, 256, 0): [1, 0, 0, 1, 1, 0, 1, 0, 1, 0, 0, 1],
    (13, GOLDEN_KEY, 4, 0): [8, 3, 2, 12, 10, 11, 7, 6, 1, 5, 9, 4],
    (1000, GOLDEN_KEY, 256, 0): [0, 268, 391, 921, 313, 814, 579, 5, 65, 824, 691, 126],
    (1000, 2**64 - 1, 256, 3): [20, 240, 932, 854, 47, 791, 187, 169, 447, 682, 205, 592],
    (1000003, GOLDEN_KEY, 4096, 2999998): [
        601494,
        335301,
        898892,
        601552,
        795303,
        333495,
        183882,
        601414,
        600893,
        899554,
        899543,
        987377,
    ],
    (1000000007, 12345, 131072, 1000000000000): [
        23261045,
        469880042,
        481472875,
        469857128,
        59737632,
        469985845,
        469822490,
        23273313,
        59664099,
        469852373,
        23260069,
        862561728,
    ],
}


def epochs_of(n, key=KEY, block_windows=BLOCK, epochs=1):
    """(epochs, n) windows."""
    return SampleOrder(n, key, block_windows).index(np.arange(epochs * n)).reshape(epochs, n)


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 3000), key=st.integers(0, 2**64 - 1), block_windows=st.integers(1, 4000))
@example(n=1, key=0, block_windows=1)
@example(n=2, key=1, block_windows=1)
@example(n=2, key=1, block_windows=1000)
def test_every_epoch_is_a_bijection(n, key, block_windows):
    windows = epochs_of(n, key, block_windows, epochs=3)
    assert np.array_equal(np.sort(windows, axis=1), np.tile(np.arange(n), (3, 1)))


@pytest.mark.parametrize(
    "n", [1, 2, 3, 5, 13, 15, 16, 17, 251, 257, 65_537, GROUP - 1, GROUP, GROUP + 1, 2 * GROUP + 17, 3 * GROUP]
)
def test_every_epoch_is_a_bijection_around_the_sizes_of_blocks_and_groups(n):
    for seed in range(3):
        windows = epochs_of(n, order_key("fingerprint", seed), epochs=2)
        assert np.array_equal(np.sort(windows, axis=1), np.tile(np.arange(n), (2, 1)))


def test_golden_sample_numbers():
    """A change of these needs another ORDER_VERSION: runs would go on in another order."""
    assert order_key("0123456789abcdef", seed=1) == GOLDEN_KEY
    for (n, key, block_windows, first), windows in GOLDEN.items():
        assert SampleOrder(n, key, block_windows).index(first + np.arange(len(windows))).tolist() == windows


def test_it_is_a_function_of_the_sample_number_alone():
    order, n = SampleOrder(30_000, KEY, BLOCK), 30_000
    everything = order.index(np.arange(2 * n))
    some = np.random.default_rng(0).integers(0, 2 * n, size=(5, 7))
    assert np.array_equal(order.index(some), everything[some])
    assert order.index(np.int64(123)) == everything[123]


def test_epochs_seeds_corpora_and_copies_have_orders_of_their_own():
    n = 1000
    first, second = epochs_of(n, epochs=2)
    others = [
        second,
        *epochs_of(n, order_key("0123456789abcdef", seed=2)),
        *epochs_of(n, order_key("another", seed=1)),
        *epochs_of(n, order_key("0123456789abcdef", seed=1, copy=1)),
    ]
    for other in others:
        assert np.mean(other == first) < 0.02


@pytest.mark.parametrize("n", [GROUP - 28, 31 * GROUP + 5])
def test_samples_come_from_everywhere_the_tail_included(n):
    [windows] = epochs_of(n)
    # A fair shuffle has correlation ~ 1/sqrt(number of things shuffled): blocks, or windows where one group holds all.
    shuffled = n if n <= GROUP else n // BLOCK
    assert abs(np.corrcoef(windows, np.arange(n))[0, 1]) < 4 / np.sqrt(shuffled)
    places = np.flatnonzero(windows >= n - n % BLOCK)
    assert np.ptp(places) > len(places)
    assert not np.array_equal(windows[places], np.sort(windows[places]))


def test_a_group_reads_few_blocks():
    [windows] = epochs_of(10 * GROUP)
    for group in windows.reshape(-1, GROUP):
        assert len(np.unique(group // BLOCK)) == GROUP_BLOCKS


def test_a_corpus_of_few_blocks_is_shuffled_whole():
    [windows] = epochs_of(GROUP)
    assert len(np.unique(windows[:BLOCK] // BLOCK)) > GROUP_BLOCKS // 2


def test_far_samples_cost_no_more():
    order = SampleOrder(10**9 + 7, KEY, 131_072)
    began = time.perf_counter()
    windows = order.index(np.arange(10**12, 10**12 + 8))
    assert time.perf_counter() - began < 1
    assert len(np.unique(windows)) == 8


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 500), st.integers(0, 2**64 - 1))
def test_permutations_invert(n, key):
    keys = np.full(n, key, dtype=np.uint64)
    there = permute(np.arange(n), n, keys)
    assert np.array_equal(permute(there, n, keys, inverse=True), np.arange(n))


@pytest.mark.parametrize(("n", "orders"), [(2, 2), (3, 6), (4, 24)])
def test_small_permutations_are_uniform(n, orders):
    keys = np.random.default_rng(0).integers(0, 2**64, size=60_000, dtype=np.uint64)
    drawn = np.stack([permute(np.full(len(keys), value), n, keys) for value in range(n)], axis=1)
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    expected = len(keys) / orders
    assert len(counts) == orders and np.all(np.abs(counts - expected) < 5 * np.sqrt(expected))


def test_an_order_of_nothing_is_refused():
    with pytest.raises(ValueError, match="0 windows"):
        SampleOrder(0, KEY, BLOCK)
