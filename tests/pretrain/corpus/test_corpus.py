import json
import random
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from pretrain.corpus import open_corpus
from pretrain.corpus.tokenizers import ByteTokenizer
from pretrain.corpus.writing.spool import split_documents
from pretrain.errors import InputError

WORDS = [
    "def",
    "return",
    "lambda x:",
    "naïve",
    "日本語",
    "🐍",
    "\r\n",
    "\t",
    "  ",
    "\ufeff",
    "<|endoftext|>",
    "0",
    "\0",
    "class",
]
VOCABULARY = 300


def make_texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 120))) for _ in range(count)]


@pytest.fixture
def bpe_file(tmp_path: Path) -> str:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(make_texts(30), trainer)
    tokenizer.save(str(tmp_path / "bpe.json"))
    return str(tmp_path / "bpe.json")


def documents(folder: Path, split: str) -> list[tuple[str, str]]:
    """(id, text) of a split, from what the shards hold."""
    corpus = open_corpus(folder)
    stream, tokenizer = corpus.split(split), corpus.tokenizer()
    ends = stream.document_ends()
    assert ends[-1] == len(stream) == corpus.manifest.splits[split].tokens
    starts = [0, *ends[:-1]]
    assert all(stream.read(end - 1, end)[0] == corpus.manifest.end_id for end in ends)
    texts = [tokenizer.decode(stream.read(start, end - 1)) for start, end in zip(starts, ends, strict=True)]
    return list(zip(stream.document_ids(), texts, strict=True))


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_decoding_the_shards_gives_the_texts_back(make_corpus, bpe_file, kind):
    texts = make_texts(60)
    folder = make_corpus(texts, tokenizer="bytes" if kind == "bytes" else bpe_file)
    train, validation = documents(folder, "train"), documents(folder, "validation")
    assert train and validation
    assert sorted(train + validation) == [(f"{number:04d}.txt", text) for number, text in enumerate(texts)]

    manifest = open_corpus(folder).manifest
    for name, found in (("train", train), ("validation", validation)):
        split = manifest.splits[name]
        assert split.documents == len(found)
        assert split.bytes == sum(len(text.encode()) for _, text in found)
        assert [split.tokens, split.bytes, split.documents] == [
            sum(getattr(shard, field) for shard in split.shards) for field in ("tokens", "bytes", "documents")
        ]
    assert len(manifest.splits["train"].shards) > 3
    assert manifest.vocab_size == (262 if kind == "bytes" else VOCABULARY)


@given(st.text())
def test_the_byte_tokenizer_is_utf_8_plus_six(text):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text.encode(errors="ignore"))
    assert ids.tolist() == [byte + 6 for byte in text.encode(errors="ignore")]
    assert tokenizer.decode([0, 1, *ids, 2]) == text.encode(errors="ignore").decode()


def test_a_corpus_with_a_tokenizer_file_stands_alone(make_corpus, bpe_file):
    folder = make_corpus(make_texts(20), tokenizer=bpe_file)
    Path(bpe_file).unlink()
    corpus = open_corpus(folder)
    tokenizer = corpus.tokenizer()
    assert tokenizer.decode(tokenizer.encode("def naïve 🐍")) == "def naïve 🐍"
    assert (tokenizer.name, tokenizer.hash) == (bpe_file, corpus.manifest.tokenizer_hash)
    assert (tokenizer.vocab_size, tokenizer.end_id) == (VOCABULARY, corpus.manifest.end_id) == (VOCABULARY, 1)
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text().replace("def", "fed"))
    with pytest.raises(InputError, match=r"tokenizer\.json.*damaged"):
        corpus.tokenizer()


def test_an_unknown_end_token_is_refused(make_corpus, bpe_file):
    with pytest.raises(InputError, match=r"end_token.*</s>"):
        make_corpus(make_texts(5), tokenizer=bpe_file, end_token="</s>")


def test_duplicates_never_straddle(make_corpus):
    texts = make_texts(40)
    folder = make_corpus(texts * 3, deduplicate=False)
    sides = [{text for _, text in documents(folder, split)} for split in ("train", "validation")]
    assert sides[0].isdisjoint(sides[1]) and sides[0] | sides[1] == set(texts)
    assert sum(split.documents for split in open_corpus(folder).manifest.splits.values()) == 120


def test_duplicates_and_empty_documents_are_left_out(make_corpus):
    texts = make_texts(40)
    folder = make_corpus([*texts, "", *texts[:10]])
    found = documents(folder, "train") + documents(folder, "validation")
    assert sorted(text for _, text in found) == sorted(texts)
    assert open_corpus(folder).manifest.sources[0].duplicates == 10


@given(
    hashes=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2**64 - 1)), min_size=2, max_size=30),
    fraction=st.floats(0.001, 0.999),
)
def test_both_splits_get_a_document_and_equal_ones_the_same_split(hashes, fraction):
    hashes = np.array([(side * 2**60, place) for side, place in hashes], dtype=np.uint64)
    if len(np.unique(hashes[:, 0])) < 2:
        return
    splits = split_documents(hashes, fraction)
    assert sorted([*splits["train"], *splits["validation"]]) == list(range(len(hashes)))
    sides = {name: {tuple(hashes[number]) for number in numbers} for name, numbers in splits.items()}
    assert sides["train"] and sides["validation"] and sides["train"].isdisjoint(sides["validation"])


def test_the_validation_fraction_is_met_and_a_growing_corpus_keeps_the_sides():
    hashes = np.random.default_rng(0).integers(0, 2**64, size=(20_000, 2), dtype=np.uint64)
    all_splits, half = split_documents(hashes, 0.1), split_documents(hashes[:10_000], 0.1)
    assert len(all_splits["validation"]) == pytest.approx(2000, abs=5 * 43)
    assert set(half["validation"]) == {n for n in all_splits["validation"] if n < 10_000}


def test_output_is_deterministic(make_corpus):
    texts = make_texts(40)
    first, second, other = (make_corpus(t, out=f"c{n}") for n, t in enumerate([texts, texts, [*texts, "one more"]]))
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    for name in names:
        if name != "manifest.json":  # it says where the sources lie
            assert (first / name).read_bytes() == (second / name).read_bytes()
    manifests = [open_corpus(folder).manifest for folder in (first, second, other)]
    assert manifests[0].splits == manifests[1].splits
    assert manifests[0].fingerprint == manifests[1].fingerprint != manifests[2].fingerprint


def test_the_fingerprint_depends_on_the_tokenizer(make_corpus, bpe_file):
    texts = make_texts(20)
    folders = make_corpus(texts, out="a"), make_corpus(texts, out="b", tokenizer=bpe_file)
    assert len({open_corpus(folder).manifest.fingerprint for folder in folders}) == 2


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["train-00001.bin", "train-00001.ends", "train-00001.ids", "validation-00000.bin"])
def test_missing_or_cut_files_are_refused_when_the_corpus_is_opened(make_corpus, name):
    path = make_corpus(make_texts(60)) / name
    data = path.read_bytes()
    for damage in (path.unlink, lambda: path.write_bytes(data[:-1]), lambda: path.write_bytes(data + b"\0\0")):
        damage()
        with pytest.raises(InputError, match=name):
            open_corpus(path.parent)


def test_a_flipped_bit_is_refused_at_first_touch(make_corpus):
    folder = make_corpus(make_texts(60))
    for name in ("train-00001.bin", "train-00001.ends", "train-00001.ids"):
        flip_bit(folder / name)
    corpus = open_corpus(folder)
    stream, shard_tokens = corpus.split("train"), corpus.manifest.shard_tokens
    assert len(stream.read(0, shard_tokens)) == shard_tokens
    with pytest.raises(InputError, match=r"train-00001\.bin: damaged"):
        stream.read(shard_tokens - 1, shard_tokens + 1)
    with pytest.raises(InputError, match=r"train-00001\.ends: damaged"):
        stream.document_ends()
    with pytest.raises(InputError, match=r"train-00001\.ids: damaged"):
        stream.document_ids()


def test_a_shard_that_vanishes_after_opening_is_refused_at_first_touch(make_corpus):
    folder = make_corpus(make_texts(60))
    stream = open_corpus(folder).split("train")
    (folder / "train-00000.bin").unlink()
    with pytest.raises(InputError, match=r"train-00000\.bin: missing"):
        stream.read(0, 1)


def test_a_folder_without_manifest_and_no_folder_are_refused(make_corpus, tmp_path):
    folder = make_corpus(make_texts(10))
    (folder / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"corpus has no manifest\.json.*half-written"):
        open_corpus(folder)
    with pytest.raises(InputError, match="nowhere does not exist"):
        open_corpus(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", "another", "format is 'another'"),
        ("version", 2, "version is 2"),
        ("fingerprint", "0", "checksum does not hold"),
        ("dtype", "uint32", "checksum does not hold"),
        ("dtype", "float16", "dtype"),
        ("splits", {}, "checksum does not hold"),
    ],
)
def test_a_manifest_that_was_changed_is_refused(make_corpus, field, value, message):
    path = make_corpus(make_texts(10)) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(InputError, match=f"manifest.json.*{message}"):
        open_corpus(path.parent)


def test_every_flipped_bit_of_the_manifest_is_refused(make_corpus):
    path = make_corpus(make_texts(10)) / "manifest.json"
    good = path.read_bytes()
    for place in range(0, len(good), 37):
        bad = bytearray(good)
        bad[place] ^= 1
        path.write_bytes(bad)
        try:
            corpus = open_corpus(path.parent)
        except InputError as error:
            assert "manifest.json" in str(error) or path.parent.name in str(error)
        else:
            assert corpus.manifest.model_dump_json(indent=2).encode() + b"\n" == good, "only white space may differ"


@pytest.mark.parametrize("texts", [[""], ["", "", ""], ["one"], ["one", "one"]])
def test_an_empty_corpus_is_refused_and_leaves_nothing(make_corpus, tmp_path, texts):
    with pytest.raises(InputError, match="train and validation need at least one"):
        make_corpus(texts)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus-text"]
