import time

import numpy as np
import pytest

from pretrain.corpus import MixturePart, SampleOrder, SampleSequence, StridedWindows, make_windows, order_key
from pretrain.errors import InputError

CONTEXT, LATENTS = 12, 5
WEIGHTS = {"a": ((0, 2.0), (150, 1.0)), "b": ((0, 1.0), (60, 0.0), (150, 3.0))}
TOKENS = {"a": 1003, "b": 517}
KINDS = {"a": "strided", "b": "packed"}


@pytest.fixture(scope="module")
def streams(tmp_path_factory, write_stream):
    folder, rng = tmp_path_factory.mktemp("streams"), np.random.default_rng(0)
    return {name: write_stream(folder / name, rng.integers(6, 262, size=n), 64) for name, n in TOKENS.items()}


def windows_of(stream, kind="strided"):
    return make_windows(kind, stream, context=CONTEXT, latents=LATENTS, key=3, segments=False)


def mixture_of(streams):
    parts = [MixturePart(name, windows_of(streams[name], KINDS[name]), f"of {name}", WEIGHTS[name]) for name in TOKENS]
    return parts, SampleSequence(parts, seed=1, global_batch=32)


def test_one_part_has_the_samples_of_its_order(streams):
    windows = windows_of(streams["a"])
    order = SampleOrder(len(windows), order_key("fingerprint", 1), windows.block_windows)
    samples = np.arange(1000).reshape(10, 100)
    plan = SampleSequence([MixturePart("a", windows, "fingerprint", ((0, 1.0),))], seed=1, global_batch=8).plan(samples)
    assert np.array_equal(plan.window, order.index(samples))
    assert np.array_equal(plan.epoch, samples // len(windows))
    assert np.array_equal(plan.source, np.zeros_like(samples))


def test_each_part_goes_through_its_own_order_epoch_by_epoch(streams):
    parts, sequence = mixture_of(streams)
    samples = np.arange(8000)
    plan = sequence.plan(samples)
    for i, part in enumerate(parts):
        own, n = plan.source == i, len(part.windows)
        numbers = np.arange(own.sum())
        order = SampleOrder(n, order_key(part.fingerprint, 1), part.windows.block_windows)
        assert np.array_equal(plan.window[own], order.index(numbers))
        assert np.array_equal(plan.epoch[own], numbers // n)
        assert plan.epoch[own][-1] > 10


def test_a_plan_says_which_windows_a_sample_is(streams):
    parts, sequence = mixture_of(streams)
    plan = sequence.plan(np.arange(300, 340))
    for number in zip(plan.source.tolist(), plan.window.tolist(), plan.epoch.tolist(), strict=True):
        source, window, epoch = number
        expected = parts[source].windows.window(window, epoch)
        assert np.array_equal(sequence.window(*number).input_ids, expected.input_ids)
        assert np.array_equal(sequence.window(*number).targets, expected.targets)


def test_a_corpus_used_twice_has_two_orders_whatever_it_is_called(streams):
    windows, samples = windows_of(streams["a"]), np.arange(4096)

    def plan(*names):
        parts = [MixturePart(name, windows, "fingerprint", ((0, 1.0),)) for name in names]
        return SampleSequence(parts, seed=1, global_batch=8).plan(samples)

    twice = plan("a", "b")
    first, second = twice.window[twice.source == 0], twice.window[twice.source == 1]
    assert np.mean(first == second) < 0.05
    assert np.array_equal(plan("x", "y").window, twice.window)


def test_epochs_are_counted_by_part(streams):
    parts, sequence = mixture_of(streams)
    for samples in (0, 1, 32 * 60, 5000, 32 * 150 + 1):
        counts = np.bincount(sequence.plan(np.arange(samples)).source, minlength=2)
        assert sequence.drawn(samples).tolist() == counts.tolist()
        expected = {part.name: count / len(part.windows) for part, count in zip(parts, counts, strict=True)}
        assert sequence.epochs(samples) == pytest.approx(expected)


def test_parts_hear_of_their_windows_in_the_order_of_use(streams):
    class Recorded(StridedWindows):
        def will_read(self, numbers, epochs):
            self.announced = list(zip(numbers.tolist(), epochs.tolist(), strict=True))

    recorded = [Recorded(streams[name], context=CONTEXT, latents=LATENTS, stride=LATENTS) for name in TOKENS]
    parts = [MixturePart(str(i), windows, str(i), ((0, 1.0),)) for i, windows in enumerate(recorded)]
    sequence = SampleSequence(parts, seed=1, global_batch=8)
    plan = sequence.plan(np.arange(600, 1200).reshape(-1, 8))
    sequence.will_read(plan)
    for i, windows in enumerate(recorded):
        own = plan.source == i
        assert windows.announced == list(zip(plan.window[own].tolist(), plan.epoch[own].tolist(), strict=True))


def test_ten_billion_samples_in_is_reached_at_once(streams):
    parts, _ = mixture_of(streams)
    began = time.perf_counter()
    sequence = SampleSequence(parts, seed=1, global_batch=32)
    plan = sequence.plan(np.arange(10**10, 10**10 + 8))
    drawn = sequence.drawn(10**10)
    assert time.perf_counter() - began < 1
    assert drawn.sum() == 10**10
    for i, part in enumerate(parts):
        epochs = (drawn[i] + np.arange(np.sum(plan.source == i))) // len(part.windows)
        assert plan.epoch[plan.source == i].tolist() == epochs.tolist()


def test_impossible_weights_are_refused(streams):
    part = MixturePart("wiki", windows_of(streams["a"]), "fingerprint", ((0, -1.0),))
    with pytest.raises(InputError, match=r"data\.mixture\.wiki\.weight: -1"):
        SampleSequence([part], seed=1, global_batch=8)
