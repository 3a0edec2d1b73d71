"""Sides and order of documents are functions of their texts alone."""

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.corpus.splits import (
    content_hash,
    hash_halves,
    is_validation,
    threshold_for_both,
    validation_threshold,
)


def test_the_hash_is_xxh3_and_its_halves_are_big_endian():
    texts = [b"", b"one", "zwölf".encode()]
    digests = [content_hash(text) for text in texts]
    assert digests == [xxhash.xxh3_128(text).digest() for text in texts]
    side, place = hash_halves(b"".join(digests))
    expected = [xxhash.xxh3_128_intdigest(text) for text in texts]
    assert [int(s) << 64 | int(p) for s, p in zip(side, place, strict=True)] == expected
    order = np.lexsort((side, place))
    assert order.tolist() == sorted(range(3), key=lambda n: digests[n][8:] + digests[n][:8])


def test_the_validation_fraction_is_met():
    held_out = sum(is_validation(content_hash(str(number).encode()), 0.1) for number in range(20_000))
    assert held_out == pytest.approx(2000, abs=5 * 43)


@given(st.binary(max_size=20), st.floats(0.001, 0.999))
@settings(max_examples=50)
def test_a_larger_fraction_holds_out_more(text, fraction):
    digest = content_hash(text)
    side = int.from_bytes(digest[:8], "big")
    assert is_validation(digest, fraction) == (side < validation_threshold(fraction))
    if is_validation(digest, fraction / 2):
        assert is_validation(digest, fraction)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=10, unique=True), st.floats(0.001, 0.999))
@settings(max_examples=50)
def test_both_sides_get_a_text_and_no_more_are_moved_than_that_takes(sides, fraction):
    plain = {side for side in sides if side < validation_threshold(fraction)}
    held_out = {side for side in sides if side < threshold_for_both(fraction, min(sides), max(sides))}
    assert 0 < len(held_out) < len(sides)
    if 0 < len(plain) < len(sides):
        assert held_out == plain
    else:
        assert len(plain ^ held_out) == 1
