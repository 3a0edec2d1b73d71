import functools
import json
import random
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import xxhash
from pydantic import ValidationError

from pretrain.corpus.direct import DirectReader, StreamConfig
from pretrain.corpus.direct.virtual_stream import Documents, VirtualStream, deal
from pretrain.corpus.reader import global_hash
from pretrain.corpus.sources.streamed_text import StreamedText
from pretrain.corpus.tokenizers import load_tokenizer
from pretrain.errors import InputError

pytestmark = pytest.mark.usefixtures("own_cache")

CONTEXT, LATENTS, GLOBAL_BATCH, STREAMS, STEPS = 24, 10, 16, 8, 40


@pytest.fixture
def config(tmp_path, write_files, made_up_texts):
    rng = random.Random(3)
    long = "".join(rng.choices("abcd ", k=7 * CONTEXT))
    files = [[*made_up_texts(rng, 20), long, "x"], made_up_texts(rng, 40), ["a", "b", long, "", *made_up_texts(rng, 9)]]
    write_files(tmp_path / "data", files, "parquet")
    return StreamConfig(dataset=str(tmp_path / "data"), streams=STREAMS, validation_fraction=0.1)


def open_reader(config, **changes):
    settings = {
        "context": CONTEXT,
        "latents": LATENTS,
        "segments": True,
        "global_batch": GLOBAL_BATCH,
        "micro_batch": 2,
        "rank": 0,
        "world_size": 1,
        "start_step": 0,
        "stop_step": STEPS,
        "read_ahead": 3,
        "states": None,
    }
    return DirectReader(config, loaded(config.tokenizer), **(settings | changes))


loaded = functools.lru_cache(load_tokenizer)


def read_ranks(config, world_size, **settings):
    """step -> (rows of the global batch, its hash, states of all ranks joined)."""
    steps = {}
    for rank in range(world_size):
        with open_reader(config, rank=rank, world_size=world_size, **settings) as reader:
            for batch in reader:
                rows, hashes, states = steps.setdefault(batch.step, ([], [], {}))
                rows += [row for micro in batch.micro_batches for row in rows_of(micro)]
                hashes += batch.sample_hashes()
                states |= json.loads(json.dumps(batch.state))
    return {step: (rows, global_hash(hashes), states) for step, (rows, hashes, states) in steps.items()}


def rows_of(micro):
    valid = torch.ones_like(micro.input_ids, dtype=torch.bool) if micro.key_valid is None else micro.key_valid
    columns = (micro.indices, micro.input_ids, micro.targets, valid, micro.segments)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_rows_are_consecutive_windows_of_their_virtual_stream(config):
    text = StreamedText(config)
    tokenizer = load_tokenizer("bytes")
    streams = []
    for number in range(STREAMS):
        documents = Documents(text, deal(text.files, STREAMS, number), tokenizer, config.validation_fraction)
        streams.append(VirtualStream(documents, context=CONTEXT, latents=LATENTS, segments=True))
    for step, (rows, _, states) in read_ranks(config, 1).items():
        for row, (index, inputs, targets, valid, segments) in enumerate(rows):
            window = streams[row * STREAMS // GLOBAL_BATCH].next_window()
            assert index == step * GLOBAL_BATCH + row
            assert inputs == window.input_ids.tolist() and targets == window.targets.tolist()
            assert valid == ([True] * CONTEXT if window.valid is None else window.valid.tolist())
            assert segments == window.segments.tolist()
        for number, stream in enumerate(streams):
            assert stream.state().items() <= states[str(number)].items()


def test_global_batches_do_not_depend_on_ranks_micro_batch_or_read_ahead(config):
    expected = read_ranks(config, 1)
    assert len(expected) == STEPS and min(s["epochs"] for s in expected[STEPS - 1][2].values()) >= 1
    for world_size, micro_batch, read_ahead in [(1, 16, 1), (1, 1, 50), (2, 8, 1), (4, 1, 2), (8, 2, 4)]:
        assert read_ranks(config, world_size, micro_batch=micro_batch, read_ahead=read_ahead) == expected


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_stopping_on_some_ranks_and_resuming_on_others_goes_on_exactly(config, bpe, tokenizer):
    config = config.model_copy(update={"tokenizer": bpe if tokenizer == "bpe" else "bytes"})
    expected = read_ranks(config, 1)
    rng = random.Random(tokenizer)
    for step in rng.sample(range(1, STEPS - 2), 10):
        first, second = rng.choice([1, 2, 4, 8]), rng.choice([1, 2, 4, 8])
        states = {}
        for rank in range(first):
            with open_reader(config, rank=rank, world_size=first, read_ahead=rng.randint(1, 6)) as reader:
                for batch in reader:
                    if batch.step == step - 1:
                        states |= json.loads(json.dumps(batch.state))
                        break
        assert states == expected[step - 1][2]
        settings = {"start_step": step, "stop_step": min(STEPS, step + 6), "states": states}
        found = read_ranks(config, second, micro_batch=rng.choice([1, 2]), **settings)
        assert found == {number: expected[number] for number in range(step, settings["stop_step"])}


def test_every_document_that_is_not_held_out_is_trained_on_and_no_other(config):
    text = StreamedText(config)
    texts = {content for file in range(3) for rows in text.rows(file) for content in rows.texts if content}
    held_out = {t for t in texts if int.from_bytes(xxhash.xxh3_128_digest(t)[:8], "big") < 0.1 * 2**64}
    assert len(held_out) >= 3
    trained = [b""] * STREAMS
    tokenizer = load_tokenizer("bytes")
    for rows, _, _ in read_ranks(config, 1).values():
        for row, (_, inputs, targets, valid, _) in enumerate(rows):
            if not all(valid[-LATENTS:]):
                trained[row * STREAMS // GLOBAL_BATCH] += bytes([inputs[valid.index(True)]])  # the very first token
            ids = np.array(targets)
            trained[row * STREAMS // GLOBAL_BATCH] += np.where(ids == 2, 10, ids - 6).astype(np.uint8).tobytes()
    seen = {document for stream in trained for document in stream.split(b"\n")[1:-1]}
    assert tokenizer.end_id == 2 and not any(b"\n" in t for t in texts)
    assert not seen & held_out
    assert {t for t in texts - held_out if len(t) > 1} - seen == set()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"world_size": 3, "micro_batch": 1}, r"streams: 8 must be a multiple of the number of ranks \(3\)$"),
        ({"world_size": 16, "micro_batch": 1}, r"streams: 8 must be a multiple of the number of ranks \(16\)$"),
        ({"global_batch": 20}, r"^data\.stream\.streams: 8 must divide train\.global_batch \(20\): "),
        ({"world_size": 3, "global_batch": 20}, r"^data.*the number of ranks \(3\); data.*global_batch \(20\): "),
        ({"micro_batch": 3}, r"^train\.global_batch: 16 must be a multiple of train\.micro_batch \(3\)"),
    ],
)
def test_what_does_not_divide_is_refused(config, changes, message):
    with pytest.raises(InputError, match=message):
        open_reader(config, **changes)


def test_states_of_other_data_are_refused(config, tmp_path, write_files):
    [*_, (_, _, states)] = read_ranks(config, 1, stop_step=2).values()
    with open_reader(config, start_step=2, states=states, segments=False) as reader:
        assert next(reader).step == 2
    write_files(tmp_path / "other", [["abc"] * 20] * 4, "parquet")
    for changed, settings in [
        ({"streams": 4}, {}),
        ({"validation_fraction": 0.2}, {}),
        ({"dataset": str(tmp_path / "other")}, {}),
        ({}, {"context": CONTEXT + 1}),
        ({}, {"latents": LATENTS - 1}),
    ]:
        with pytest.raises(InputError, match=r"^data\.stream: the run to resume was trained on other files, or"):
            open_reader(config.model_copy(update=changed), start_step=2, states=states, **settings)
    same_names = shutil.copytree(config.dataset, tmp_path / "same_names")
    with open_reader(config.model_copy(update={"dataset": str(same_names)}), start_step=2, states=states) as reader:
        assert next(reader).step == 2
    changed_file = min(path for path in same_names.iterdir() if path.is_file())
    write_files(tmp_path / "longer", [["abc"] * 99], changed_file.suffix.removeprefix("."))
    shutil.copy(min((tmp_path / "longer").iterdir()), changed_file)
    with pytest.raises(InputError, match="the run to resume"):
        open_reader(config.model_copy(update={"dataset": str(same_names)}), start_step=2, states=states)
    with pytest.raises(InputError, match="the run to resume"):
        open_reader(config, start_step=2, states={name: states[name] for name in "0123"})


def test_an_error_is_raised_at_the_step_it_belongs_to(tmp_path):
    lines = [json.dumps({"text": "x" * 99}) + "\n" for _ in range(200_000)]  # 20 MB, read in parts of 10 MB
    (tmp_path / "data.jsonl").write_text("".join(lines) + "{broken\n")
    config = StreamConfig(dataset=str(tmp_path), streams=1, validation_fraction=1e-9)
    reader = open_reader(config, global_batch=1, micro_batch=1, context=50_000, latents=50_000, stop_step=1000)
    with pytest.raises(InputError, match=r"data\.jsonl, row \d+: cannot be read"), reader:
        for batch in reader:
            last = batch.step
    assert 150 < last < 399
    assert next(reader, None) is None


def test_reading_ahead_is_bounded_and_closing_ends_all_threads(config):
    before = threading.active_count()
    reader = open_reader(config, read_ahead=2, stop_step=10**9)
    steps = [next(reader).step for _ in range(3)]
    reader.close()
    reader.close()
    assert steps == [0, 1, 2] and next(reader, None) is None
    assert threading.active_count() == before


def test_how_often_each_file_is_read(config):
    with open_reader(config, stop_step=1) as reader:
        assert reader.reads_per_file == 3  # 8 streams share 3 files
    with open_reader(config.model_copy(update={"streams": 2}), stop_step=1) as reader:
        assert reader.reads_per_file == 1


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"streams": 0}, "streams"),
        ({"validation_fraction": 0}, "validation_fraction"),
        ({"validation_fraction": 1}, "validation_fraction"),
        ({"validation_bytes": 0}, "validation_bytes"),
        ({"shuffle": True}, "shuffle"),
    ],
)
def test_impossible_settings_are_refused(fields, where):
    with pytest.raises(ValidationError) as refused:
        StreamConfig(**{"dataset": "a/b", **fields})
    assert [error["loc"] for error in refused.value.errors()] == [(where,)]


def test_reading_prints_nothing(tmp_path, write_files):
    write_files(tmp_path / "data", [["abc"] * 600] * 2, "parquet")
    (tmp_path / "data" / "part-001.parquet").write_bytes(b"no parquet")
    program = f"""
from pretrain.corpus.direct import DirectReader, StreamConfig
from pretrain.corpus.sources.streamed_text import StreamedText
from pretrain.corpus.tokenizers import load_tokenizer
from pretrain.errors import InputError
config = StreamConfig(dataset={str(tmp_path / "data")!r}, streams=1)
with DirectReader(config, load_tokenizer("bytes"), context=8, latents=4, segments=False, global_batch=1, micro_batch=1,
                  rank=0, world_size=1, start_step=0, stop_step=100, read_ahead=1, states=None) as reader:
    next(reader)
text = StreamedText(config)
for rows in text.rows(0): pass
try:
    for rows in text.rows(1): pass
except InputError as error:
    raise SystemExit(0)
raise SystemExit(1)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
