import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.corpus import StridedWindows
from pretrain.errors import InputError


def tokens_of(count: int) -> np.ndarray:
    return np.arange(count) + 1000  # the value tells the place


@given(data=st.data())
def test_every_token_but_the_first_is_a_target_once_with_full_context(write_stream, data):
    count = data.draw(st.integers(2, 60), label="tokens")
    context = data.draw(st.integers(1, 40), label="context")
    latents = data.draw(st.integers(1, context), label="latents")
    stride = data.draw(st.integers(1, latents), label="stride")
    shard_tokens = data.draw(st.integers(1, 70), label="shard_tokens")
    with tempfile.TemporaryDirectory() as folder:
        stream = write_stream(Path(folder, "s"), tokens_of(count), shard_tokens)
        dataset = StridedWindows(stream, context=context, latents=latents, stride=stride)
        seen = []
        for number in range(len(dataset)):
            window = dataset.window(number)
            assert window.input_ids.shape == (context,) and window.targets.shape == (latents,)
            inputs = [int(t) - 1000 if t else None for t in window.input_ids]  # places, None = padding
            valid = [place is not None for place in inputs]
            assert window.valid is None if all(valid) else window.valid.tolist() == valid
            for place, target in zip(inputs[-latents:], window.targets, strict=True):
                if target != -100:
                    assert target - 1000 == place + 1
                    seen.append(target - 1000)
            # Inputs run without a gap, from as far back as the context reaches or the stream goes.
            last = inputs[-1]
            expected = [place if place >= 0 else None for place in range(last - context + 1, last + 1)]
            assert inputs == expected
        assert sorted(seen) == list(range(1, count))


def test_a_window_by_hand(tmp_path, write_stream):
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


@given(shard_tokens=st.integers(1, 12), bounds=st.tuples(st.integers(0, 10), st.integers(0, 10)))
def test_reads_across_shards(write_stream, shard_tokens, bounds):
    start, stop = sorted(bounds)
    with tempfile.TemporaryDirectory() as folder:
        stream = write_stream(Path(folder, "s"), tokens_of(10), shard_tokens)
        read = stream.read(start, stop)
        assert read.dtype == np.int64 and read.tolist() == list(range(1000 + start, 1000 + stop))


def test_a_stream_of_one_token_is_refused(tmp_path, write_stream):
    with pytest.raises(InputError, match="nothing to predict"):
        StridedWindows(write_stream(tmp_path / "s", tokens_of(1), 3), context=4, latents=2, stride=2)


def test_outside_the_stream_nothing_is_read(tmp_path, write_stream):
    stream = write_stream(tmp_path / "s", tokens_of(8), 3)
    with pytest.raises(IndexError):
        stream.read(0, 9)
    with pytest.raises(IndexError):
        StridedWindows(stream, context=4, latents=2, stride=2).window(4)
