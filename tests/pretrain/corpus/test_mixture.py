import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.corpus.mixture import BLOCK_SAMPLES, Mixture, block_counts
from pretrain.errors import InputError

STAGED = {"a": [(0, 0.6), (700, 0.1)], "b": [(0, 0.3), (300, 0.0), (700, 0.5)], "c": [(0, 0.1)]}
GLOBAL_BATCH = 8
STAGE_STEPS = [0, 300, 700]
GOLDEN = {  # first sample: its part and those of the next ones
    0: "bababaaabbbbbaaaaccbabaaaabcbaaa",
    2032: "bababacbcbaabaaabaaaaabbbabaabaa",
    2384: "baacbbcbcabaaaaacaaaaaaaaaaaaaaa",
    5590: "aaaaaaaaaaacbbbacbbbbbbbcbaababc",
    10000000000: "abbbacbbbbbbbbbbbbcbcbbcabbbbaba",
}


def staged():
    return Mixture(STAGED, seed=1, global_batch=GLOBAL_BATCH)


def stage_bounds(end):
    firsts = [step * GLOBAL_BATCH for step in STAGE_STEPS]
    return zip(firsts, [*firsts[1:], end], strict=True)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=12))
def test_counts_are_those_of_the_largest_remainders(weights):
    counts = block_counts({str(i): weight for i, weight in enumerate(weights)}, step=0)
    total = sum(map(Fraction, weights))
    excess = [count - BLOCK_SAMPLES * Fraction(weight) / total for weight, count in zip(weights, counts, strict=True)]
    assert counts.sum() == BLOCK_SAMPLES
    assert all(abs(more) < 1 for more in excess)
    # No part was rounded up while one with a larger remainder was rounded down.
    assert max((more for more in excess if more > 0), default=0) <= 1 + min(excess)


def test_counts_by_hand():
    assert block_counts({"a": 0.6, "b": 0.3, "c": 0.1}, 0).tolist() == [1229, 614, 205]
    assert block_counts({"a": 1, "b": 1, "c": 1}, 0).tolist() == [683, 683, 682]
    assert block_counts({"a": 0, "b": 7}, 0).tolist() == [0, 2048]


def test_every_block_has_exactly_its_counts():
    mixture, end = staged(), 700 * GLOBAL_BATCH + 5 * BLOCK_SAMPLES
    part, _ = mixture.split(np.arange(end))
    for (first, stop), step in zip(stage_bounds(end), STAGE_STEPS, strict=True):
        at_step = {name: [w for s, w in own if s <= step][-1] for name, own in STAGED.items()}
        for block in range(first, stop - BLOCK_SAMPLES + 1, BLOCK_SAMPLES):
            counts = np.bincount(part[block : block + BLOCK_SAMPLES], minlength=3)
            assert counts.tolist() == block_counts(at_step, step).tolist()
    assert not np.any(part[300 * GLOBAL_BATCH : 700 * GLOBAL_BATCH] == 1)


stages = st.lists(st.integers(1, 600), max_size=3, unique=True).map(lambda steps: [0, *sorted(steps)])
weights = stages.flatmap(lambda steps: st.tuples(*[st.tuples(st.just(step), st.floats(0.05, 1)) for step in steps]))


@settings(max_examples=30, deadline=None)
@given(parts=st.lists(weights, min_size=1, max_size=4), global_batch=st.integers(1, 17), seed=st.integers(0, 9))
def test_each_parts_samples_come_once_and_in_order_across_blocks_and_stages(parts, global_batch, seed):
    mixture = Mixture({str(i): own for i, own in enumerate(parts)}, seed=seed, global_batch=global_batch)
    end = 600 * global_batch + 3000
    part, number = mixture.split(np.arange(end))
    for i in range(len(parts)):
        assert np.array_equal(number[part == i], np.arange(np.sum(part == i)))
    for samples in (0, 1, 599 * global_batch, 600 * global_batch, end - 1, end):
        assert mixture.drawn(samples).tolist() == np.bincount(part[:samples], minlength=len(parts)).tolist()


def test_it_is_a_function_of_the_sample_number_alone():
    mixture = staged()
    part, number = mixture.split(np.arange(20_000))
    some = np.random.default_rng(0).integers(0, 20_000, size=(5, 7))
    for whole, picked in zip((part, number), mixture.split(some), strict=True):
        assert np.array_equal(picked, whole[some])


def test_a_change_of_weights_leaves_the_samples_before_it():
    planned = {**STAGED, "a": [*STAGED["a"], (1000, 0.9)]}
    before = np.arange(1000 * GLOBAL_BATCH)
    changed = Mixture(planned, seed=1, global_batch=GLOBAL_BATCH).split(before)
    assert np.array_equal(changed, staged().split(before))


def test_parts_are_spread_evenly_over_each_block_and_differently():
    [part, _] = Mixture({"a": [(0, 1)], "b": [(0, 1)]}, seed=1, global_batch=8).split(np.arange(64 * BLOCK_SAMPLES))
    blocks = part.reshape(64, BLOCK_SAMPLES)
    # Of 1024 samples of part b, those in the first half of a block: hypergeometric, standard deviation 11.3.
    in_first_half = blocks[:, : BLOCK_SAMPLES // 2].sum(axis=1)
    assert np.all(abs(in_first_half - 512) < 5 * 11.3) and len(np.unique(in_first_half)) > 16
    neighbours_differ = np.mean(blocks[:, 1:] != blocks[:, :-1])
    assert abs(neighbours_differ - 0.5) < 0.01
    seed_2 = Mixture({"a": [(0, 1)], "b": [(0, 1)]}, seed=2, global_batch=8).split(np.arange(BLOCK_SAMPLES))[0]
    assert abs(np.mean(seed_2 == blocks[0]) - 0.5) < 0.06


def test_golden_parts():
    """A change of these needs another ORDER_VERSION: runs would go on in another order."""
    mixture = staged()
    for first, parts in GOLDEN.items():
        assert "".join("abc"[i] for i in mixture.split(first + np.arange(len(parts)))[0]) == parts


def test_one_part_has_every_sample_in_order():
    part, number = Mixture({"a": [(0, 3.0)]}, seed=1, global_batch=8).split(np.arange(5000, 5100))
    assert not part.any() and np.array_equal(number, np.arange(5000, 5100))


def test_far_samples_cost_no_more():
    began = time.perf_counter()
    mixture = staged()
    part, number = mixture.split(np.arange(10**12, 10**12 + 8))
    drawn = mixture.drawn(10**12)
    assert time.perf_counter() - began < 1
    for i in range(3):
        assert number[part == i].tolist() == [drawn[i] + k for k in range(np.sum(part == i))]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {"a": [(0, 1.0)], "b": [(0, 1e-4)]},
            r"data\.mixture\.b\.weight: 0\.0001 from step 0 on .* at least 0\.000489",
        ),
        ({"a": [(0, 1.0)], "b": [(0, 1), (9, 1e-9)]}, r"data\.mixture\.b\.weight: 1e-09 from step 9 on"),
        ({"a": [(0, -0.5)], "b": [(0, 1)]}, r"data\.mixture\.a\.weight: -0\.5 from step 0 on"),
        ({"a": [(0, float("nan"))]}, r"data\.mixture\.a\.weight: nan"),
        ({"a": [(0, float("inf"))]}, r"data\.mixture\.a\.weight: inf"),
        (
            {"a": [(0, 1), (5, 0)], "b": [(0, 0)]},
            r"data\.mixture\.a\.weight, data\.mixture\.b\.weight: all 0 from step 5",
        ),
        ({"a": [(0, 1)], "b": [(0, 1), (9, 1), (9, 2)]}, r"data\.mixture\.b\.weight: begins at steps \[0, 9, 9\]"),
        ({"a": [(0, 1), (9, 1), (5, 2)]}, r"data\.mixture\.a\.weight: begins at steps \[0, 9, 5\]"),
        ({"a": [(1, 1)]}, r"data\.mixture\.a\.weight: begins at steps \[1\]"),
        ({"a": []}, r"data\.mixture\.a\.weight: begins at steps \[\]"),
    ],
)
def test_weights_that_are_no_mixture_are_refused(weights, message):
    with pytest.raises(InputError, match=message):
        Mixture(weights, seed=1, global_batch=8)
