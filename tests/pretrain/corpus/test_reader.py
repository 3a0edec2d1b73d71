import threading

import numpy as np
import pytest
import torch
import xxhash

from pretrain.corpus import BatchReader, SampleOrder, StridedWindows
from pretrain.errors import InputError

CONTEXT, LATENTS, GLOBAL_BATCH = 12, 5, 8


@pytest.fixture
def dataset(tmp_path, write_stream):
    tokens = np.random.default_rng(0).integers(6, 262, size=503)
    return StridedWindows(write_stream(tmp_path / "s", tokens, 64), context=CONTEXT, latents=LATENTS, stride=LATENTS)


def open_reader(dataset, **changes):
    settings = {
        "global_batch": GLOBAL_BATCH,
        "micro_batch": 2,
        "rank": 0,
        "world_size": 1,
        "start_step": 0,
        "stop_step": 30,
        "read_ahead": 3,
    }
    return BatchReader(dataset, SampleOrder(len(dataset), key=7), **(settings | changes))


def rows(reader):
    """step -> the rank's rows: (sample number, inputs, targets, valid)."""
    steps = {}
    with reader:
        for batch in reader:
            steps[batch.step] = [
                (int(index), ids.tolist(), targets.tolist(), valid.tolist())
                for micro in batch.micro_batches
                for index, ids, targets, valid in zip(
                    micro.indices,
                    micro.input_ids,
                    micro.targets,
                    torch.ones_like(micro.input_ids, dtype=torch.bool) if micro.key_valid is None else micro.key_valid,
                    strict=True,
                )
            ]
    return steps


def expected_rows(dataset, step):
    samples = np.arange(step * GLOBAL_BATCH, (step + 1) * GLOBAL_BATCH)
    result = []
    for sample, number in zip(samples, SampleOrder(len(dataset), key=7).index(samples), strict=True):
        window = dataset.window(int(number))
        valid = [True] * CONTEXT if window.valid is None else window.valid.tolist()
        result.append((int(sample), window.input_ids.tolist(), window.targets.tolist(), valid))
    return result


@pytest.mark.parametrize(
    ("world_size", "micro_batch", "read_ahead"), [(1, 8, 1), (1, 1, 4), (2, 2, 3), (2, 4, 1), (4, 1, 2), (8, 1, 50)]
)
def test_global_batches_do_not_depend_on_ranks_micro_batch_or_read_ahead(dataset, world_size, micro_batch, read_ahead):
    settings = {"world_size": world_size, "micro_batch": micro_batch, "read_ahead": read_ahead}
    ranks = [rows(open_reader(dataset, rank=rank, **settings)) for rank in range(world_size)]
    for step in range(30):  # more than two epochs
        assert [row for rank in ranks for row in rank[step]] == expected_rows(dataset, step)


@pytest.mark.parametrize("start", [1, 12, 13, 29])
def test_resuming_goes_on_exactly(dataset, start):
    resumed = rows(open_reader(dataset, start_step=start))
    whole = rows(open_reader(dataset))
    assert resumed == {step: whole[step] for step in range(start, 30)}


def test_batches_are_what_the_model_takes(dataset):
    with open_reader(dataset, micro_batch=4, stop_step=13) as reader:
        batches = [batch for step in reader for batch in step.micro_batches]
    assert len(batches) == 26
    for batch in batches:
        assert batch.input_ids.shape == (4, CONTEXT) and batch.input_ids.dtype == torch.int64
        assert batch.targets.shape == (4, LATENTS) and batch.targets.dtype == torch.int64
        assert batch.indices.shape == (4,) and batch.indices.dtype == torch.int64
        if batch.key_valid is not None:
            assert batch.key_valid.dtype == torch.bool and not batch.key_valid.all()
    # Only windows 0 and 1 of 101 start before the stream does, each once in the 104 samples of an epoch and a bit.
    assert 1 <= sum(batch.key_valid is not None for batch in batches) <= 4


def test_batch_hash_is_of_the_global_batch_on_every_rank(dataset):
    expected = xxhash.xxh64()
    for _, ids, targets, _ in expected_rows(dataset, step=5):
        expected.update(np.array(ids, dtype="<i8").tobytes() + np.array(targets, dtype="<i8").tobytes())
    for rank in range(2):
        with open_reader(dataset, world_size=2, rank=rank, stop_step=1) as reader:
            assert reader.batch_hash(5) == expected.hexdigest()
            assert reader.batch_hash(6) != expected.hexdigest()


def test_an_error_while_reading_ahead_is_raised_at_its_step(dataset, tmp_path):
    (tmp_path / "s" / "train-00004.bin").unlink()
    reader = open_reader(dataset)
    with pytest.raises(InputError, match=r"train-00004\.bin: missing"), reader:
        for batch in reader:
            last = batch.step
    touched = SampleOrder(len(dataset), key=7).index(np.arange(30 * GLOBAL_BATCH)) * LATENTS
    first_bad = np.flatnonzero((touched + LATENTS >= 256) & (touched - CONTEXT + LATENTS < 320))[0] // GLOBAL_BATCH
    assert first_bad > 0 and last == first_bad - 1
    assert next(reader, None) is None


def test_reading_ahead_is_bounded_and_closing_ends_the_thread(dataset, monkeypatch):
    read = []
    window = dataset.window
    monkeypatch.setattr(dataset, "window", lambda number: read.append(number) or window(number))
    before = threading.active_count()
    reader = open_reader(dataset, read_ahead=2, stop_step=10**9)
    for _ in range(3):
        next(reader)
    reader.close()
    reader.close()
    assert threading.active_count() == before
    assert len(read) <= (3 + 2 + 1) * GLOBAL_BATCH
    assert next(reader, None) is None


def test_an_iterator_runs_out_at_stop_step(dataset):
    with open_reader(dataset, start_step=4, stop_step=6) as reader:
        steps = [(batch.step, batch.wait >= 0) for batch in reader]
        assert steps == [(4, True), (5, True)]
        assert next(reader, None) is None


def test_a_global_batch_that_does_not_divide_is_refused(dataset):
    with pytest.raises(InputError, match="global_batch"):
        open_reader(dataset, micro_batch=3)
