import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.corpus.order import BLOCK_WINDOWS, GROUP_BLOCKS, SampleOrder, order_key, permute

GROUP = BLOCK_WINDOWS * GROUP_BLOCKS
KEY = order_key("0123456789abcdef", seed=1)
GOLDEN_KEY = 18097454816860356283
GOLDEN_SMALL = [813, 622, 341, 402, 493, 230, 678, 962, 786, 926, 719, 504]
GOLDEN_LARGE = [203538, 594890, 530631, 191983, 634637, 991616, 214268, 726086, 305740, 412183, 313080, 577669]


def assert_epochs_are_permutations(n: int, key: int, epochs: int) -> None:
    order = SampleOrder(n, key)
    windows = order.index(np.arange(epochs * n)).reshape(epochs, n)
    assert np.array_equal(np.sort(windows, axis=1), np.tile(np.arange(n), (epochs, 1)))


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_every_epoch_is_a_bijection(n, key):
    assert_epochs_are_permutations(n, key, epochs=3)


@pytest.mark.parametrize("n", [1, 2, 251, 257, 65_537, GROUP - 1, GROUP, GROUP + 1, 2 * GROUP + 17, 3 * GROUP])
def test_every_epoch_is_a_bijection_around_the_sizes_of_blocks_and_groups(n):
    for seed in range(3):
        assert_epochs_are_permutations(n, order_key("fingerprint", seed), epochs=2)


def test_golden_sample_numbers():
    """A change of these needs another ORDER_VERSION: runs would go on in another order."""
    assert KEY == GOLDEN_KEY
    assert SampleOrder(1000, KEY).index(np.arange(12)).tolist() == GOLDEN_SMALL
    assert SampleOrder(1_000_003, KEY).index(np.arange(12) + 2_999_998).tolist() == GOLDEN_LARGE


def test_it_is_a_function_of_the_sample_number_alone():
    order, n = SampleOrder(300_000, KEY), 300_000
    everything = order.index(np.arange(2 * n))
    some = np.random.default_rng(0).integers(0, 2 * n, size=(5, 7))
    assert np.array_equal(order.index(some), everything[some])
    assert order.index(np.int64(123)) == everything[123]


def test_epochs_seeds_and_corpora_have_orders_of_their_own():
    n = 1000
    order = SampleOrder(n, KEY)
    others = [
        order.index(np.arange(n, 2 * n)),
        SampleOrder(n, order_key("0123456789abcdef", seed=2)).index(np.arange(n)),
        SampleOrder(n, order_key("another", seed=1)).index(np.arange(n)),
    ]
    for other in others:
        assert np.mean(other == order.index(np.arange(n))) < 0.02


@pytest.mark.parametrize("n", [700, BLOCK_WINDOWS * 3 + 5, GROUP * 3 + 100])
def test_samples_come_from_everywhere_the_tail_included(n):
    windows = SampleOrder(n, KEY).index(np.arange(n))
    # A fair shuffle has correlation ~ 1/sqrt(number of things shuffled); blocks are the things that matter.
    bound = 4 / np.sqrt(min(n, n // BLOCK_WINDOWS + 300))
    assert abs(np.corrcoef(windows, np.arange(n))[0, 1]) < bound
    places = np.flatnonzero(windows >= n - n % BLOCK_WINDOWS)
    assert np.ptp(places) > len(places)
    assert not np.array_equal(places, np.arange(n - len(places), n))
    assert not np.array_equal(windows[places], np.sort(windows[places]))


def test_a_group_reads_few_blocks():
    windows = SampleOrder(10 * GROUP, KEY).index(np.arange(GROUP))
    assert len(np.unique(windows // BLOCK_WINDOWS)) == GROUP_BLOCKS


def test_far_samples_cost_no_more():
    order = SampleOrder(10**9 + 7, KEY)
    began = time.perf_counter()
    windows = order.index(np.arange(10**12, 10**12 + 8))
    assert time.perf_counter() - began < 0.5
    assert len(np.unique(windows)) == 8


@given(st.integers(1, 500), st.integers(0, 2**64 - 1))
def test_permutations_invert(n, key):
    keys = np.full(n, key, dtype=np.uint64)
    there = permute(np.arange(n), n, keys)
    assert np.array_equal(permute(there, n, keys, inverse=True), np.arange(n))


def test_small_permutations_are_uniform():
    keys = np.random.default_rng(0).integers(0, 2**64, size=60_000, dtype=np.uint64)
    orders = np.stack([permute(np.full(len(keys), value), 3, keys) for value in range(3)], axis=1)
    _, counts = np.unique(orders, axis=0, return_counts=True)
    # 6 orders, each expected 10,000 times with standard deviation 91.
    assert len(counts) == 6 and np.all(np.abs(counts - 10_000) < 5 * 91)
