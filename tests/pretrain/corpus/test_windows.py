import tempfile
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.corpus import CropWindows, PackedWindows, StridedWindows, Window, make_windows
from pretrain.errors import InputError

FIRST = 1000  # tokens are numbered from here: a token tells its place


def tokens_of(count: int) -> np.ndarray:
    return np.arange(count) + FIRST


@st.composite
def cases(draw):
    """Lengths of documents, shard_tokens, context and latents."""
    lengths = draw(st.lists(st.integers(1, 25), min_size=1, max_size=6).filter(lambda found: sum(found) >= 2))
    context = draw(st.integers(1, 40))
    return lengths, draw(st.integers(3, 70)), context, draw(st.integers(1, context))


def check_window(window: Window, ends: list[int], context: int, latents: int) -> list[int]:
    """Whatever its kind, a window's inputs are a run of tokens up to just before its last target, padded on the left.

    Returns the places it trains.
    """
    assert window.input_ids.shape == (context,) and window.targets.shape == (latents,)
    assert window.input_ids.dtype == window.targets.dtype == np.int64
    places = (window.input_ids - FIRST).tolist()
    valid = [place >= 0 for place in places]
    assert window.valid is None if all(valid) else window.valid.tolist() == valid
    padding = context - sum(valid)
    assert places[padding:] == list(range(places[-1] - context + padding + 1, places[-1] + 1))
    assert set(window.input_ids[:padding].tolist()) <= {0}
    trained = []
    for place, target in zip(places[-latents:], window.targets.tolist(), strict=True):
        if target != -100:
            assert place >= 0 and target - FIRST == place + 1
            trained.append(place + 1)
    assert trained and trained[-1] == places[-1] + 1, "a window that trains nothing would divide by 0"
    if window.segments is not None:
        document = np.searchsorted(ends, np.maximum(places, places[padding]), side="right")
        assert window.segments.dtype == np.int32
        assert window.segments.tolist() == (document - document[0]).tolist()
    return trained


@settings(max_examples=30)
@given(case=cases(), data=st.data())
def test_strided_every_token_but_the_first_is_a_target_once_with_full_context(write_stream, case, data):
    lengths, shard_tokens, context, latents = case
    stride = data.draw(st.integers(1, latents))
    ends = np.cumsum(lengths).tolist()
    with tempfile.TemporaryDirectory() as folder:
        stream = write_stream(Path(folder, "s"), tokens_of(ends[-1]), shard_tokens, ends)
        windows = StridedWindows(stream, context=context, latents=latents, stride=stride, segments=True)
        seen = []
        for number in range(len(windows)):
            window = windows.window(number, epoch=number)
            trained = check_window(window, ends, context, latents)
            seen += trained
            # Inputs go back as far as the context reaches or the stream goes.
            assert (window.input_ids > 0).sum() == min(context, trained[-1])
        assert seen == list(range(1, ends[-1]))


@settings(max_examples=30)
@given(case=cases(), first_epoch=st.integers(0, 100))
def test_packed_every_token_is_trained_in_a_cycle_of_epochs(write_stream, case, first_epoch):
    lengths, shard_tokens, context, latents = case
    ends = np.cumsum(lengths).tolist()
    count, cycle = ends[-1], -(-context // latents)
    with tempfile.TemporaryDirectory() as folder:
        stream = write_stream(Path(folder, "s"), tokens_of(count), shard_tokens, ends)
        windows = PackedWindows(stream, context=context, latents=latents, segments=True)
        times = Counter()
        for epoch in range(first_epoch, first_epoch + cycle):
            read = Counter()
            for number in range(len(windows)):
                window = windows.window(number, epoch)
                trained = check_window(window, ends, context, latents)
                assert len(trained) == min(latents, trained[-1])
                times.update(trained)
                read.update(window.input_ids[window.input_ids > 0].tolist())
            shift = epoch * latents % context
            moved = len(windows) * context - shift > count - 1
            uncut = sorted(set(tokens_of(count - 1)) - set(read))
            assert uncut == list(range(FIRST + len(windows) * context - shift, FIRST + count - 1))
            assert sum(read.values()) - len(read) < context and (moved or set(read.values()) == {1})
    inner = [times[place] for place in range(1, count - latents)]
    assert set(inner) <= ({1} if context % latents == 0 else {1, 2})
    if first_epoch % cycle == 0 and context % latents == 0:
        assert min(times[place] for place in range(1, count)) >= 1


def test_packed_by_hand(tmp_path, write_stream):
    stream = write_stream(tmp_path / "s", tokens_of(11), 3, [5, 11])
    windows = PackedWindows(stream, context=4, latents=2, segments=True)
    found = [[windows.window(number, epoch) for number in range(len(windows))] for epoch in (0, 1)]
    assert [[(w.input_ids - FIRST).tolist() for w in epoch] for epoch in found] == [
        [[0, 1, 2, 3], [4, 5, 6, 7], [6, 7, 8, 9]],
        [[-1000, -1000, 0, 1], [2, 3, 4, 5], [6, 7, 8, 9]],
    ]
    assert [[(w.targets - FIRST).tolist() for w in epoch] for epoch in found] == [
        [[3, 4], [7, 8], [9, 10]],
        [[1, 2], [5, 6], [9, 10]],
    ]
    assert found[1][0].valid.tolist() == [False, False, True, True]
    assert found[0][1].segments.tolist() == [0, 1, 1, 1]
    assert found[1][1].segments.tolist() == [0, 0, 0, 1]


@settings(max_examples=30)
@given(case=cases(), key=st.integers(0, 2**64 - 1), epoch=st.integers(0, 1000))
def test_crops_stay_inside_their_document(write_stream, case, key, epoch):
    lengths, shard_tokens, context, latents = case
    ends = np.cumsum(lengths).tolist()
    with tempfile.TemporaryDirectory() as folder:
        stream = write_stream(Path(folder, "s"), tokens_of(ends[-1]), shard_tokens, ends)
        options = {"context": context, "latents": latents, "key": key, "segments": True}
        if max(lengths) == 1:
            with pytest.raises(InputError, match="no document of a split has two tokens"):
                CropWindows(stream, **options)
            return
        windows = CropWindows(stream, **options)
        documents = [(end - length, length) for end, length in zip(ends, lengths, strict=True) if length > 1]
        assert len(windows) == len(documents)
        for number, (start, length) in enumerate(documents):
            window = windows.window(number, epoch)
            trained = check_window(window, ends, context, latents)
            assert start + min(latents, length - 1) <= trained[-1] <= start + length - 1
            assert trained == list(range(max(start + 1, trained[-1] - latents + 1), trained[-1] + 1))
            assert (window.input_ids > 0).sum() == min(context, trained[-1] - start)
            again = CropWindows(stream, **options).window(number, epoch)
            assert (again.input_ids == window.input_ids).all() and (again.targets == window.targets).all()


def test_crops_end_uniformly_and_anew_in_every_epoch(tmp_path, write_stream):
    length, latents, draws = 50, 10, 20_000
    stream = write_stream(tmp_path / "s", tokens_of(2 * length), 64, [length, 2 * length])
    windows = CropWindows(stream, context=20, latents=latents, key=7)
    ends = np.array([[windows.window(n, epoch).targets[-1] for n in (0, 1)] for epoch in range(draws)]) - FIRST
    counts = np.stack([np.bincount(ends[:, 0], minlength=length), np.bincount(ends[:, 1] - length, minlength=length)])
    assert (counts[:, :latents] == 0).all()
    expected = draws / (length - latents)
    chi_square = ((counts[:, latents:] - expected) ** 2 / expected).sum(axis=1)
    # 39 degrees of freedom: mean 39, and 72 is exceeded once in a thousand times.
    assert (chi_square < 72).all()
    assert abs(np.corrcoef(ends[:, 0], ends[:, 1])[0, 1]) < 0.03, "documents are drawn for apart"
    other = CropWindows(stream, context=20, latents=latents, key=8)
    assert any(other.window(0, epoch).targets[-1] != ends[epoch, 0] + FIRST for epoch in range(10))


@pytest.mark.parametrize("lengths", [[4], [4, 4, 1, 4, 4]])
def test_crops_hold_8_bytes_per_document(tmp_path, write_stream, lengths):
    count = 100_000
    ends = np.cumsum(np.resize(lengths, count))
    stream = write_stream(tmp_path / "s", np.zeros(ends[-1], dtype=np.int64), 1 << 20, ends.tolist())
    tracemalloc.start()
    windows = CropWindows(stream, context=4, latents=2, key=0)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    short = lengths.count(1) * count // len(lengths)
    assert len(windows) == count - short
    assert held < 8 * (count + short) + 50_000, "8 more for each that is too short"


def test_announcing_crops_of_a_local_stream_costs_nothing(tmp_path, write_stream):
    windows = CropWindows(write_stream(tmp_path / "s", tokens_of(8), 8), context=4, latents=2, key=0)
    zeros = np.zeros(100_000, dtype=np.int64)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        windows.will_read(zeros, zeros)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.001


def test_a_strided_window_by_hand(tmp_path, write_stream):
    dataset = StridedWindows(write_stream(tmp_path / "s", tokens_of(8), 3), context=4, latents=3, stride=2)
    windows = [dataset.window(number) for number in range(len(dataset))]
    assert [w.input_ids.tolist() for w in windows] == [
        [0, 0, 1000, 1001],
        [1000, 1001, 1002, 1003],
        [1002, 1003, 1004, 1005],
        [1003, 1004, 1005, 1006],
    ]
    assert [w.targets.tolist() for w in windows] == [
        [-100, 1001, 1002],
        [-100, 1003, 1004],
        [-100, 1005, 1006],
        [-100, -100, 1007],
    ]
    assert windows[0].valid.tolist() == [False, False, True, True]
    assert [w.valid for w in windows[1:]] == [None, None, None]
    assert all(w.segments is None for w in windows)


@pytest.mark.parametrize("kind", ["strided", "packed", "crop"])
def test_kinds_by_name(tmp_path, write_stream, kind):
    stream = write_stream(tmp_path / "s", tokens_of(4000), 100, [*range(50, 4000, 50), 4000])
    windows = make_windows(kind, stream, context=20, latents=5, key=3, segments=True)
    # 4 shards hold 400 tokens: 80 strides, 20 contexts, 8 documents.
    assert windows.block_windows == {"strided": 80, "packed": 20, "crop": 8}[kind]
    assert (windows.stream, windows.context, windows.latents) == (stream, 20, 5)
    windows.will_read(np.arange(len(windows)), np.ones(len(windows), dtype=np.int64))
    for number in (-1, len(windows)):
        with pytest.raises(IndexError):
            windows.window(number)
    with pytest.raises(InputError, match="nothing to predict"):
        make_windows(kind, write_stream(tmp_path / "t", tokens_of(1), 3), context=4, latents=2, key=0, segments=False)
