import itertools
import math
import random

import pytest

from pretrain.corpus.writing.baselines import SAMPLE_BYTES, conditional_entropy, measure_baselines


def test_entropy_of_known_distributions():
    assert conditional_entropy(b"abcd" * 100, order=0) == pytest.approx(2)
    assert conditional_entropy(b"a" * 100, order=0) == 0
    assert conditional_entropy(b"a" * 30 + b"b" * 10, order=0) == pytest.approx(2 - 0.75 * math.log2(3))
    assert conditional_entropy(bytes(range(256)), order=0) == pytest.approx(8)


def test_a_periodic_text_is_certain_given_its_past():
    assert conditional_entropy(b"abcd" * 100, order=1) == 0
    # After one byte "aab" can go on two ways, after two bytes in one way only.
    assert conditional_entropy(b"aab" * 100, order=1) == pytest.approx(2 / 3, abs=0.01)
    assert conditional_entropy(b"aab" * 100, order=2) == 0


def test_independent_fair_bits_have_one_bit_at_any_order():
    text = bytes(random.Random(0).choices(b"01", k=20_000))
    assert [conditional_entropy(text, order) for order in (0, 1, 2)] == pytest.approx([1, 1, 1], abs=0.002)


def test_order_2_matches_a_plain_count():
    text = bytes(random.Random(1).choices(b"abc", weights=(5, 2, 1), k=500))
    triples = [text[i : i + 3] for i in range(len(text) - 2)]
    expected = 0.0
    for a, b in itertools.product(b"abc", repeat=2):
        following = [t[2] for t in triples if t[:2] == bytes([a, b])]
        shares = [following.count(c) / len(following) for c in set(following)]
        expected -= len(following) / len(triples) * sum(p * math.log2(p) for p in shares)
    assert conditional_entropy(text, order=2) == pytest.approx(expected)


def test_a_text_no_longer_than_the_context_has_no_entropy():
    assert conditional_entropy(b"ab", order=2) == 0


def test_incompressible_text_stays_at_eight_bits():
    baselines = measure_baselines(random.Random(2).randbytes(100_000))
    assert baselines.order_0 == pytest.approx(8, abs=0.01)
    assert 8 < baselines.xz < 8.1


@pytest.mark.slow
def test_a_long_text_is_sampled_from_its_start_and_says_so():
    baselines = measure_baselines(b"ab" * (SAMPLE_BYTES // 2) + b"c" * 1000)
    assert baselines.sample_bytes == SAMPLE_BYTES
    assert baselines.order_0 == pytest.approx(1)
