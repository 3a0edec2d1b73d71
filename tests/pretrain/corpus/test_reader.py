import threading
from itertools import pairwise

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pretrain.corpus import (
    BatchReader,
    MixturePart,
    SampleSequence,
    StridedWindows,
    TokenStream,
    global_hash,
    make_windows,
)
from pretrain.corpus import reader as reader_module
from pretrain.corpus.manifest import SplitEntry
from pretrain.corpus.writing.shards import ShardWriter
from pretrain.errors import InputError

CONTEXT, LATENTS, GLOBAL_BATCH, STEPS = 12, 5, 32, 120
SHARD_TOKENS = 64
DOCUMENTS = {"strided": 100, "packed": 60, "crop": 200}
WEIGHTS = {
    "strided": ((0, 1.0), (70, 3.0), (90, 1.0)),
    "packed": ((0, 1.0), (90, 0.0), (105, 1.0)),
    "crop": ((0, 0.5),),
}
"""With these, steps cross stages, a block within the first stage, and epochs of every part."""
WORLD_SIZES = (1, 2, 4, 8)


def write_documents(folder, count, rng):
    """A stream of documents of 1 to 30 tokens."""
    folder.mkdir()
    writer = ShardWriter(folder, "train", "uint16", SHARD_TOKENS)
    lengths = rng.integers(1, 31, size=count)
    for number, length in enumerate(lengths):
        writer.add(str(number), rng.integers(6, 262, size=length), text_bytes=0)
    tokens = int(lengths.sum())
    split = SplitEntry(tokens=tokens, bytes=0, documents=count, shards=writer.close(), baselines=None)
    return TokenStream(folder, split, "uint16", SHARD_TOKENS)


def one_part(windows):
    return SampleSequence([MixturePart("only", windows, "fingerprint", ((0, 1.0),))], seed=7, global_batch=GLOBAL_BATCH)


@pytest.fixture
def windows(tmp_path, write_stream):
    stream = write_stream(tmp_path / "s", np.random.default_rng(0).integers(6, 262, size=1003), SHARD_TOKENS)
    return StridedWindows(stream, context=CONTEXT, latents=LATENTS, stride=LATENTS)


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory):
    """Without and with segments."""
    folder, rng = tmp_path_factory.mktemp("streams"), np.random.default_rng(0)
    streams = {kind: write_documents(folder / kind, count, rng) for kind, count in DOCUMENTS.items()}

    def mixture(segments):
        parts = [
            MixturePart(
                kind,
                make_windows(kind, stream, context=CONTEXT, latents=LATENTS, key=3, segments=segments),
                fingerprint=kind,
                weights=WEIGHTS[kind],
            )
            for kind, stream in streams.items()
        ]
        return SampleSequence(parts, seed=7, global_batch=GLOBAL_BATCH)

    return [mixture(segments) for segments in (False, True)]


@pytest.fixture(scope="module")
def expected(mixtures):
    """Of each mixture, the rows of each step."""
    return [expected_rows(samples) for samples in mixtures]


def open_reader(samples, **changes):
    settings = {
        "global_batch": GLOBAL_BATCH,
        "micro_batch": 2,
        "rank": 0,
        "world_size": 1,
        "start_step": 0,
        "stop_step": 30,
        "read_ahead": 3,
    }
    return BatchReader(samples, **(settings | changes))


def expected_rows(samples):
    """(sample number, inputs, targets, valid, segments) of each row of each step, window by window."""
    plan, rows = samples.plan(np.arange(STEPS * GLOBAL_BATCH)), []
    for sample, number in enumerate(zip(plan.source, plan.window, plan.epoch, strict=True)):
        window = samples.window(*map(int, number))
        valid = [True] * CONTEXT if window.valid is None else window.valid.tolist()
        segments = None if window.segments is None else window.segments.tolist()
        rows.append((sample, window.input_ids.tolist(), window.targets.tolist(), valid, segments))
    return [rows[first : first + GLOBAL_BATCH] for first in range(0, len(rows), GLOBAL_BATCH)]


def rows_of(step):
    """As `expected_rows` has them."""
    rows = []
    for batch in step.micro_batches:
        valid = torch.ones_like(batch.input_ids, dtype=torch.bool) if batch.key_valid is None else batch.key_valid
        segments = [None] * len(valid) if batch.segments is None else batch.segments.tolist()
        columns = (batch.indices, batch.input_ids, batch.targets, valid)
        rows += zip(*(column.tolist() for column in columns), segments, strict=True)
    return rows


def hashes_of(step):
    """(sample number, hash) of each row."""
    samples = [index for batch in step.micro_batches for index in batch.indices.tolist()]
    return list(zip(samples, step.sample_hashes(), strict=True))


def read(samples, world_size=1, of=hashes_of, **settings):
    """step -> `of` the step on all ranks, in order of rank."""
    found = {}
    for rank in range(world_size):
        with open_reader(samples, rank=rank, world_size=world_size, **settings) as steps:
            for step in steps:
                found.setdefault(step.step, []).extend(of(step))
    return found


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_global_batches_do_not_depend_on_ranks_micro_batch_or_read_ahead(mixtures, expected, monkeypatch, data):
    world_size = data.draw(st.sampled_from(WORLD_SIZES), label="world_size")
    rows = GLOBAL_BATCH // world_size
    micro_batch = data.draw(st.sampled_from([n for n in range(1, rows + 1) if rows % n == 0]), label="micro_batch")
    read_ahead = data.draw(st.integers(1, 20), label="read_ahead")
    monkeypatch.setattr(reader_module, "PLANNED_SAMPLES", data.draw(st.sampled_from([1, 300, 65_536]), label="planned"))
    which = data.draw(st.integers(0, 1), label="segments")
    start = data.draw(st.integers(0, STEPS - 10), label="start")
    found = read(
        mixtures[which],
        world_size,
        rows_of,
        micro_batch=micro_batch,
        read_ahead=read_ahead,
        start_step=start,
        stop_step=start + 10,
    )
    assert found == {step: expected[which][step] for step in range(start, start + 10)}


@pytest.mark.parametrize("which", [0, 1], ids=["plain", "segments"])
def test_every_world_size_has_the_whole_sequence(mixtures, expected, which):
    assert list(read(mixtures[which], of=rows_of, stop_step=STEPS).values()) == expected[which]
    sequences = [read(mixtures[which], size, stop_step=STEPS) for size in WORLD_SIZES]
    assert all(sequence == sequences[0] for sequence in sequences)


def test_stopping_and_resuming_on_other_ranks_goes_on_exactly(mixtures):
    """Again and again, with nothing kept but the number of the step."""
    rng = np.random.default_rng(5)
    stops = np.sort(rng.choice(np.arange(1, STEPS), size=20, replace=False)).tolist()
    found = {}
    for start, stop in pairwise([0, *stops, STEPS]):
        found |= read(mixtures[1], int(rng.choice(WORLD_SIZES)), start_step=start, stop_step=stop)
    assert found == read(mixtures[1], stop_step=STEPS)
    assert min(mixtures[1].epochs(STEPS * GLOBAL_BATCH).values()) > 2


def test_batches_are_what_the_model_takes(windows):
    with open_reader(one_part(windows), micro_batch=4, stop_step=13) as steps:
        batches = [batch for step in steps for batch in step.micro_batches]
    assert len(batches) == 13 * GLOBAL_BATCH // 4
    for batch in batches:
        assert batch.input_ids.shape == (4, CONTEXT) and batch.input_ids.dtype == torch.int64
        assert batch.targets.shape == (4, LATENTS) and batch.targets.dtype == torch.int64
        assert batch.indices.shape == (4,) and batch.indices.dtype == torch.int64
        assert batch.segments is None
        if batch.key_valid is not None:
            assert batch.key_valid.dtype == torch.bool and not batch.key_valid.all()
    # Only windows 0 and 1 of 201 start before the stream does, each two or three times in the 416 samples.
    assert 2 <= sum(batch.key_valid is not None for batch in batches) <= 6


def test_segments_come_with_the_batches(mixtures):
    with open_reader(mixtures[1], micro_batch=8, stop_step=3) as steps:
        for batch in (batch for step in steps for batch in step.micro_batches):
            assert batch.segments.shape == (8, CONTEXT) and batch.segments.dtype == torch.int32
            assert batch.segments.max() > 0


def test_a_batch_moves_whole(windows):
    with open_reader(one_part(windows), stop_step=1) as steps:
        [batch, *_] = next(steps).micro_batches
    moved = batch.to(torch.device("meta"))
    for name, tensor in vars(batch).items():
        assert (tensor is None and vars(moved)[name] is None) or vars(moved)[name].shape == tensor.shape
    assert moved.input_ids.device.type == "meta"


@pytest.mark.parametrize("which", [0, 1], ids=["plain", "segments"])
def test_hashes_are_of_all_that_is_trained_on(mixtures, expected, which):
    hashes = []
    for _, ids, targets, _, segments in expected[which][5]:
        data = np.array(ids, dtype="<i8").tobytes() + np.array(targets, dtype="<i8").tobytes()
        if segments is not None:
            data += np.array(segments, dtype="<i4").tobytes()
        hashes.append(xxhash.xxh64_intdigest(data))
    found = [value for _, value in read(mixtures[which], start_step=5, stop_step=6)[5]]
    assert found == hashes
    assert global_hash(found) == xxhash.xxh64_hexdigest(b"".join(h.to_bytes(8, "little") for h in hashes))
    assert global_hash(found) != global_hash(found[::-1])


def test_the_windows_of_a_chunk_are_announced_a_chunk_before(windows, monkeypatch):
    monkeypatch.setattr(reader_module, "PLANNED_SAMPLES", 2 * GLOBAL_BATCH)
    announced, opened, too_late = [], [], []

    class Recorded(StridedWindows):
        def will_read(self, numbers, epochs):
            announced.extend(zip(numbers.tolist(), epochs.tolist(), strict=True))

        def window(self, number, epoch=0):
            # Whatever is read now, the two steps after its chunk are known.
            opened.append((number, epoch))
            chunks_read = -(-len(opened) // (2 * GLOBAL_BATCH))
            if len(announced) < min(chunks_read + 1, 5) * 2 * GLOBAL_BATCH or announced[: len(opened)] != opened:
                too_late.append(len(opened))
            return super().window(number, epoch)

    recorded = Recorded(windows.stream, context=CONTEXT, latents=LATENTS, stride=LATENTS)
    with open_reader(one_part(recorded), stop_step=10) as steps:
        assert len(list(steps)) == 10
    assert len(opened) == 10 * GLOBAL_BATCH and not too_late


def test_an_error_while_reading_ahead_is_raised_at_its_step(windows, tmp_path):
    samples = SampleSequence([MixturePart("only", windows, "fingerprint", ((0, 1.0),))], seed=7, global_batch=2)
    last_target = (samples.plan(np.arange(200)).window + 1) * LATENTS
    touched = [
        np.flatnonzero((last_target >= first) & (last_target - CONTEXT < first + SHARD_TOKENS))
        for first in range(0, 960, SHARD_TOKENS)
    ]
    shard, first = max(enumerate(steps[0] // 2 for steps in touched), key=lambda found: found[1])
    assert first > 3
    (tmp_path / "s" / f"train-{shard:05d}.bin").unlink()
    reader = open_reader(samples, global_batch=2, stop_step=100)
    with pytest.raises(InputError, match=rf"train-{shard:05d}\.bin: missing"), reader:
        for batch in reader:
            last = batch.step
    assert last == first - 1
    assert next(reader, None) is None


def test_reading_ahead_is_bounded_and_closing_ends_the_thread(windows, monkeypatch):
    opened = []
    window = windows.window
    monkeypatch.setattr(windows, "window", lambda *number: opened.append(number) or window(*number))
    before = threading.active_count()
    reader = open_reader(one_part(windows), read_ahead=2, stop_step=10**9)
    for _ in range(3):
        next(reader)
    reader.close()
    reader.close()
    assert threading.active_count() == before
    assert len(opened) <= (3 + 2 + 1) * GLOBAL_BATCH
    assert next(reader, None) is None


def test_an_iterator_runs_out_at_stop_step(windows):
    with open_reader(one_part(windows), start_step=4, stop_step=6) as steps:
        found = [(batch.step, batch.wait >= 0, batch.state) for batch in steps]
        assert found == [(4, True, None), (5, True, None)]
        assert next(steps, None) is None


def test_a_global_batch_that_does_not_divide_is_refused(windows):
    with pytest.raises(InputError) as refused:
        open_reader(one_part(windows), micro_batch=3)
    assert str(refused.value) == "train.global_batch: 32 must be a multiple of train.micro_batch (3) x ranks (1) = 3"
