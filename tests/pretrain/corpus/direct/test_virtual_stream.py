import json
import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pretrain.corpus import StridedWindows
from pretrain.corpus.direct.config import StreamConfig
from pretrain.corpus.direct.virtual_stream import ENCODED_BYTES, Documents, VirtualStream, deal
from pretrain.corpus.sources.streamed_text import StreamedText
from pretrain.corpus.tokenizers import load_tokenizer
from pretrain.errors import InputError

pytestmark = pytest.mark.usefixtures("own_cache")

FRACTION = 0.1


def held_out(text):
    return int.from_bytes(xxhash.xxh3_128_digest(text.encode())[:8], "big") < FRACTION * 2**64


def share_of(files, streams, stream, group_rows):
    """The texts of a stream, by the definition of the dealing."""
    if len(files) >= streams:
        return [text for texts in files[stream::streams] for text in texts]
    number = stream % len(files)
    together = [other for other in range(streams) if other % len(files) == number]
    texts = files[number]
    part = together.index(stream)
    return [text for i, text in enumerate(texts) if sum(divmod(i, group_rows)) % len(together) == part]


def documents_of(files, streams, stream, tokenizer, group_rows=10**9):
    texts = [text for text in share_of(files, streams, stream, group_rows) if text and not held_out(text)]
    return [np.append(tokenizer.encode(text), tokenizer.end_id) for text in texts]


def open_documents(folder, streams, stream, tokenizer):
    text = StreamedText(StreamConfig(dataset=str(folder), streams=streams))
    return Documents(text, deal(text.files, streams, stream), tokenizer, FRACTION)


def as_lists(window):
    return [
        None if x is None else x.tolist() for x in (window.input_ids, window.targets, window.valid, window.segments)
    ]


@pytest.fixture
def files(made_up_texts):
    rng = random.Random(1)
    return [[*made_up_texts(rng, 40), "abc " * 300], made_up_texts(rng, 25), ["x", "", "y z", *made_up_texts(rng, 30)]]


@pytest.mark.parametrize(
    ("context", "latents", "segments"), [(64, 16, True), (50, 7, False), (9, 9, True), (1, 1, True)]
)
@pytest.mark.parametrize(("streams", "format"), [(1, "jsonl"), (2, "parquet"), (7, "parquet")])
def test_windows_are_the_strided_windows_of_its_documents_epoch_after_epoch(
    tmp_path, write_files, write_documents, bpe, files, streams, format, context, latents, segments
):
    write_files(tmp_path / "data", files, format)
    tokenizer = load_tokenizer("bytes" if streams < 7 else bpe)
    group_rows = 7 if format == "parquet" else 10**9
    for stream in range(streams):
        own = documents_of(files, streams, stream, tokenizer, group_rows)
        expected = StridedWindows(
            write_documents(tmp_path / str(stream), own * 3),
            context=context,
            latents=latents,
            stride=latents,
            segments=segments,
        )
        found = VirtualStream(
            open_documents(tmp_path / "data", streams, stream, tokenizer),
            context=context,
            latents=latents,
            segments=segments,
        )
        per_epoch = sum(map(len, own))
        for number in range(min(len(expected) - 1, 2 * per_epoch // latents + 3)):  # the last one may be moved left
            assert as_lists(found.next_window()) == as_lists(expected.window(number))
            assert found.state()["epochs"] == (number + 1) * latents // per_epoch
            assert found.state()["windows"] == number + 1


@settings(max_examples=30)
@given(
    texts=st.lists(st.text("abé", min_size=1, max_size=40), min_size=1, max_size=12),
    context=st.integers(1, 30),
    data=st.data(),
)
def test_windows_and_states_by_brute_force(write_files, texts, context, data):
    latents = data.draw(st.integers(1, context), label="latents")
    tokenizer = load_tokenizer("bytes")
    own = [np.append(tokenizer.encode(text), tokenizer.end_id) for text in texts if not held_out(text)]
    assume(own)
    tokens = np.concatenate(own * (2 + 12 * latents // sum(map(len, own))))
    document = np.cumsum(tokens == tokenizer.end_id) - (tokens == tokenizer.end_id)
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder, "data"), [texts], "jsonl")
        documents = open_documents(Path(folder, "data"), 1, 0, tokenizer)
        stream = VirtualStream(documents, context=context, latents=latents, segments=True)
        for number in range(12):
            if number and data.draw(st.booleans(), label="resume"):
                state = json.loads(json.dumps(stream.state()))
                stream = VirtualStream(documents, context=context, latents=latents, segments=True, state=state)
            last = (number + 1) * latents
            first = max(0, last - context)
            padding = [0] * (context - (last - first))
            inputs, targets, valid, segments = as_lists(stream.next_window())
            assert inputs == padding + tokens[first:last].tolist()
            assert targets == tokens[last - latents + 1 : last + 1].tolist()
            assert valid == ([False] * len(padding) + [True] * (last - first) if padding else None)
            assert segments == padding + (document[first:last] - document[first]).tolist()


def test_streams_share_out_every_document_that_is_not_held_out_once(tmp_path, write_files, files):
    assert sum(held_out(text) for texts in files for text in texts if text) > 3
    tokenizer = load_tokenizer("bytes")
    for format in ("parquet", "jsonl", "arrow"):
        write_files(tmp_path / format, files, format)
        for streams in (1, 2, 3, 4, 8):
            seen = []
            for stream in range(streams):
                documents = open_documents(tmp_path / format, streams, stream, tokenizer)
                for places, tokens in documents.read(documents.first(0)):
                    seen += [tokens[i].tolist() for i, place in enumerate(places) if place.epoch == 0]
                    if places[-1].epoch:
                        break
            wanted = [[*tokenizer.encode(t).tolist(), 2] for texts in files for t in texts if t and not held_out(t)]
            assert sorted(seen) == sorted(wanted)


@pytest.mark.parametrize("format", ["parquet", "arrow", "jsonl"])
@pytest.mark.parametrize(("context", "latents"), [(64, 16), (9, 9)])
def test_a_state_continues_after_every_window(tmp_path, write_files, bpe, files, format, context, latents):
    write_files(tmp_path / "data", files, format)
    documents = open_documents(tmp_path / "data", 4, 1, load_tokenizer(bpe))

    def stream(state=None):
        return VirtualStream(documents, context=context, latents=latents, segments=True, state=state)

    whole = stream()
    windows, states = [], []
    while not windows or whole.state()["epochs"] < 2:
        windows.append(as_lists(whole.next_window()))
        states.append(json.loads(json.dumps(whole.state())))
    for number in {*range(12), *range(12, len(windows), 7)}:
        resumed = stream(states[number])
        for later in range(number + 1, min(number + 4, len(windows))):
            assert as_lists(resumed.next_window()) == windows[later]
            assert resumed.state() == states[later]


def test_documents_longer_than_what_is_tokenized_at_once(tmp_path, write_files, write_documents):
    rng = random.Random(2)
    files = [["".join(rng.choices("abcdefg", k=n)) for n in (ENCODED_BYTES * 2, 1, 1, ENCODED_BYTES - 5, 100, 10)]]
    write_files(tmp_path / "data", files, "jsonl")
    tokenizer = load_tokenizer("bytes")
    documents = open_documents(tmp_path / "data", 1, 0, tokenizer)
    settings = {"context": 4096, "latents": 1000}
    stream = write_documents(tmp_path / "s", documents_of(files, 1, 0, tokenizer) * 2)
    expected = StridedWindows(stream, **settings, stride=1000, segments=True)
    found = VirtualStream(documents, **settings, segments=True)
    for number in range(len(expected) - 1):
        assert as_lists(found.next_window()) == as_lists(expected.window(number))
        if number % 50 == 0:
            again = VirtualStream(documents, **settings, segments=True, state=found.state())
            assert as_lists(again.next_window()) == as_lists(expected.window(number + 1))


def test_a_state_stays_small(tmp_path, write_files):
    files = [["some text"] * 5000]
    write_files(tmp_path / "data", files, "jsonl")
    documents = open_documents(tmp_path / "data", 1, 0, load_tokenizer("bytes"))
    stream = VirtualStream(documents, context=512, latents=512, segments=False)
    for _ in range(200):
        stream.next_window()
    assert len(json.dumps(stream.state())) < 200
    far = {"windows": 10**15, "epochs": 10**6, "place": [10**6, 10**6, 10**6, 10**12], "token": 10**12}
    assert stream.state().keys() == far.keys() and len(json.dumps(far)) < 1000


@pytest.mark.parametrize(
    ("files", "streams"), [([[]], 1), ([["", ""]], 1), ([["a"], [""]], 2), ([["only one document"]], 2)]
)
def test_a_stream_without_text_is_refused(tmp_path, write_files, files, streams):
    write_files(tmp_path / "data", files, "parquet")
    documents = open_documents(tmp_path / "data", streams, streams - 1, load_tokenizer("bytes"))
    with pytest.raises(InputError, match=r"^data\.stream: .*no text to train on.*lower data\.stream\.streams"):
        VirtualStream(documents, context=4, latents=2, segments=False).next_window()
