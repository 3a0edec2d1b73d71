"""Opening a corpus and reading its streams, here or from afar; whatever is damaged is refused by name."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from pretrain.corpus import Corpus, ShardCache, open_corpus
from pretrain.corpus.download import Patience
from pretrain.corpus.manifest import read_manifest, write_manifest
from pretrain.errors import InputError

SHARD_TOKENS = 100
RNG = np.random.default_rng(0)
DOCUMENTS = [RNG.integers(0, 262, size=length) for length in (30, 90, 1, 159, 20, 310, 77)]
TOKENS = np.concatenate(DOCUMENTS)
HASTY = Patience(tries=2, first_delay=0.01, stall_seconds=5)


@pytest.fixture
def folder(tmp_path, write_corpus) -> Path:
    return write_corpus(tmp_path / "corpus", DOCUMENTS, SHARD_TOKENS)


@pytest.fixture(params=["local", "remote"])
def open_it(request, folder, serve, tmp_path) -> Callable[[], Corpus]:
    """Open the corpus in `folder`, as it lies there or by way of a web server and an empty cache."""
    if request.param == "local":
        return lambda: open_corpus(folder)
    url = serve(folder).url
    return lambda: open_corpus(url, ShardCache(Path(tempfile.mkdtemp(dir=tmp_path)), 1 << 20, HASTY))


@pytest.fixture
def bpe_file(tmp_path: Path) -> str:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["def naïve", "return naïve def"], trainer)
    tokenizer.save(str(tmp_path / "bpe.json"))
    return str(tmp_path / "bpe.json")


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def touch_everything(corpus: Corpus) -> None:
    corpus.tokenizer()
    for name in corpus.manifest.splits:
        stream = corpus.split(name)
        stream.read(0, len(stream))
        stream.document_ends()
        stream.document_ids()


def test_what_was_written_is_read(open_it):
    corpus = open_it()
    stream = corpus.split("train")
    assert len(stream) == len(TOKENS) and stream.shard_tokens == SHARD_TOKENS
    tokens = stream.read(0, len(stream))
    assert tokens.dtype == np.int64 and tokens.tolist() == TOKENS.tolist()
    assert stream.document_ends().tolist() == np.cumsum([len(document) for document in DOCUMENTS]).tolist()
    assert stream.document_ids() == [f"document {number}" for number in range(len(DOCUMENTS))]
    assert corpus.tokenizer().hash == corpus.manifest.tokenizer_hash


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_both_widths_are_read(tmp_path, write_corpus, dtype):
    tokens = np.array([0, 1, 65_535 if dtype == "uint16" else 4_000_000_000, 7])
    stream = open_corpus(write_corpus(tmp_path / "c", [tokens], 3, dtype)).split("train")
    assert stream.read(0, 4).tolist() == tokens.tolist()


@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=9),
    shard_tokens=st.integers(1, 30),
    bounds=st.tuples(st.integers(0, 81), st.integers(0, 81)),
)
def test_reads_and_document_starts_across_shards(write_stream, lengths, shard_tokens, bounds):
    ends = np.cumsum(lengths)
    start, stop = sorted(min(bound, int(ends[-1])) for bound in bounds)
    tokens = np.arange(ends[-1]) + 1000
    with tempfile.TemporaryDirectory() as folder:
        stream = write_stream(Path(folder, "s"), tokens, shard_tokens, ends.tolist())
        read, starts = stream.read(start, stop), stream.document_starts(start, stop)
    assert read.dtype == starts.dtype == np.int64
    assert read.tolist() == tokens[start:stop].tolist()
    assert starts.tolist() == [end for end in ends.tolist() if start < end < stop]


def test_outside_the_stream_nothing_is_read(folder):
    stream = open_corpus(folder).split("train")
    for start, stop in ((0, len(TOKENS) + 1), (-1, 5), (7, 3)):
        with pytest.raises(IndexError):
            stream.read(start, stop)


def test_a_corpus_with_a_tokenizer_file_stands_alone(tmp_path, write_corpus, serve, bpe_file):
    folder = write_corpus(tmp_path / "c", DOCUMENTS, SHARD_TOKENS, tokenizer=bpe_file)
    Path(bpe_file).unlink()
    cache = ShardCache(tmp_path / "cache", 1 << 20, HASTY)
    for corpus in (open_corpus(folder), open_corpus(serve(folder).url, cache)):
        tokenizer = corpus.tokenizer()
        assert tokenizer.decode(tokenizer.encode("def naïve")) == "def naïve"
        assert (tokenizer.name, tokenizer.hash) == (bpe_file, corpus.manifest.tokenizer_hash)
        assert (corpus.folder / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_another_tokenizer_than_the_manifest_says_is_refused(open_it, folder):
    write_manifest(read_manifest(folder).model_copy(update={"tokenizer_hash": "0123"}), folder)
    with pytest.raises(InputError, match=r"prepared with a tokenizer of hash 0123"):
        open_it().tokenizer()


@pytest.mark.parametrize("name", ["train-00001.bin", "train-00001.ends", "train-00001.ids", "validation-00000.bin"])
@pytest.mark.parametrize("damage", ["flipped bit", "cut", "too long", "missing", "other file"])
def test_a_damaged_file_is_refused_by_name(open_it, folder, name, damage):
    path = folder / name
    data = path.read_bytes()
    if damage == "flipped bit":
        flip_bit(path)
    elif damage == "missing":
        path.unlink()
    elif damage == "other file":
        path.write_bytes((folder / name.replace("00001", "00002").replace("00000", "00001")).read_bytes())
    else:
        path.write_bytes(data[:-1] if damage == "cut" else data + b"\0\0")
    with pytest.raises(InputError, match=rf"/{name}: "):
        touch_everything(open_it())


def test_sizes_are_checked_when_a_local_corpus_is_opened_and_hashes_at_first_touch(folder):
    flip_bit(folder / "train-00001.bin")
    stream = open_corpus(folder).split("train")
    assert len(stream.read(0, SHARD_TOKENS)) == SHARD_TOKENS
    with pytest.raises(InputError, match=r"train-00001\.bin: damaged"):
        stream.read(SHARD_TOKENS - 1, SHARD_TOKENS + 1)
    (folder / "train-00001.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"train-00001\.bin: has 0 bytes"):
        open_corpus(folder)


def test_a_shard_that_vanishes_later_is_refused_unless_it_is_mapped(folder):
    stream = open_corpus(folder).split("train")
    stream.read(0, 1)
    for number in range(2):
        (folder / f"train-{number:05d}.bin").unlink()
    assert stream.read(0, SHARD_TOKENS).tolist() == TOKENS[:SHARD_TOKENS].tolist()
    with pytest.raises(InputError, match=r"train-00001\.bin: missing"):
        stream.read(0, SHARD_TOKENS + 1)


def test_another_width_than_the_shards_have_is_refused(open_it, folder):
    write_manifest(read_manifest(folder).model_copy(update={"dtype": "uint32"}), folder)
    with pytest.raises(InputError, match=r"train-00000\.bin: .* as uint32 .* 400 bytes"):
        open_it()


def test_no_manifest_no_corpus(open_it, folder):
    (folder / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"manifest\.json"):
        open_it()


def test_no_folder_no_split_no_cache(folder, tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        open_corpus(tmp_path / "nowhere")
    with pytest.raises(InputError, match="has no test split, only train, validation"):
        open_corpus(folder).split("test")
    with pytest.raises(InputError, match=r"data\.cache: "):
        open_corpus("https://example.org/corpus")
    with pytest.raises(InputError, match=r"nonsense://corpus/manifest\.json: .*nonsense"):
        open_corpus("nonsense://corpus", ShardCache(tmp_path / "cache", 1))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", "another", "format is 'another'"),
        ("version", 2, "version is 2"),
        ("fingerprint", "1", "checksum does not hold"),
        ("dtype", "uint32", "checksum does not hold"),
        ("dtype", "float16", "dtype"),
        ("splits", {}, "checksum does not hold"),
    ],
)
def test_a_manifest_that_was_changed_is_refused(open_it, folder, field, value, message):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(InputError, match=f"manifest.json.*{message}") as caught:
        open_it()
    assert "/tmp" not in str(caught.value).replace(str(folder), ""), "the message names the corpus, not a copy of it"


def test_every_flipped_bit_of_the_manifest_is_refused(folder):
    path = folder / "manifest.json"
    good = path.read_bytes()
    for place in range(0, len(good), 37):
        bad = bytearray(good)
        bad[place] ^= 1
        path.write_bytes(bad)
        try:
            corpus = open_corpus(folder)
        except InputError as error:
            assert "manifest.json" in str(error)
        else:
            assert corpus.manifest.model_dump_json(indent=2).encode() + b"\n" == good, "only white space may differ"


@pytest.mark.parametrize("name", ["../outside.json", "/etc/outside.json"])
def test_a_manifest_cannot_name_files_outside_its_folder(open_it, folder, name):
    manifest = read_manifest(folder)
    entry = manifest.splits["train"].shards[0].files["train-00000.bin"]
    write_manifest(manifest.model_copy(update={"tokenizer_files": {name: entry}}), folder)
    with pytest.raises(InputError, match=r"outside\.json"):
        open_it()
