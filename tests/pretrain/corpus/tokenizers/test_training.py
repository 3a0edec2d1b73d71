import io
import json
import random
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from pretrain.corpus.splits import content_hash, is_validation
from pretrain.corpus.tokenizers import load_tokenizer
from pretrain.corpus.tokenizers.training import _SmallestHashes, train_tokenizer
from pretrain.corpus.writing.config import PrepareConfig
from pretrain.errors import InputError
from pretrain.schema import validate

SUFFIXES = {"bpe": ".json", "sentencepiece": ".model"}
KINDS = pytest.mark.parametrize("kind", SUFFIXES)


@pytest.fixture(scope="session")
def train(tmp_path_factory) -> Callable[..., Path]:
    """train(documents, kind, **fields of the training) -> the file, made from text files of a new folder."""

    def run(
        documents: Sequence[str], kind: str, name: str = "made/here/tok", end_token: str | None = None, **fields: Any
    ) -> Path:
        root = tmp_path_factory.mktemp("sources")
        for number, text in enumerate(documents):
            (root / f"{number:03d}.txt").write_bytes(text.encode())
        config = {
            "out": str(root / "out"),
            "sources": [{"kind": "text", "root": str(root), "pattern": "*.txt"}],
            "tokenizer": str(root / (name + SUFFIXES[kind])),
            "tokenizer_training": {"kind": kind, "vocab_size": 600} | fields,
            "validation_fraction": 0.3,
            "end_token": end_token,
        }
        return train_tokenizer(validate(PrepareConfig, config), Console(file=io.StringIO()))

    return run


@pytest.fixture(scope="session", params=SUFFIXES)
def trained(request, train, library):
    return load_tokenizer(str(train(library, request.param)))


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")) | st.text("ab \n\t\r0é🙂<s>/"))
@settings(max_examples=60)
def test_every_text_reads_back(trained, text):
    assert trained.decode(trained.encode(text)) == text


def test_documents_read_back(trained, library):
    for text, ids in zip(library, trained.encode_batch([text.encode() for text in library]), strict=True):
        assert trained.decode(ids) == text
        assert trained.end_id not in ids


def test_what_is_trained_is_what_was_asked_for(trained, library):
    assert trained.vocab_size == 600
    assert trained.engine == ("tiktoken" if trained.name.endswith(".json") else "sentencepiece")
    assert len(trained.encode(library[0])) < 0.5 * len(library[0])
    numbers = [trained.decode([id]) for id in trained.encode("1234567890 x")]
    assert max(len(number) for number in numbers) <= 3


@KINDS
def test_the_same_sources_give_the_same_file(train, library, kind):
    files = [train(documents, kind, sample_mb=0.3) for documents in (library, library, library[::-1])]
    assert len({file.read_bytes() for file in files}) == 1
    assert [path.name for path in files[0].parent.iterdir()] == [files[0].name]


def documents_with_a_word_each(count: int) -> list[str]:
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghij", k=12)) for _ in range(count)]
    return [f"{word} " * 50 for word in words]


def learned(file: Path, documents: list[str]) -> list[bool]:
    """Whether the word of each document is a token or two: words that were not seen are many."""
    tokenizer = load_tokenizer(str(file))
    return [len(tokenizer.encode(text)) <= 2 * 50 for text in documents]


@KINDS
def test_held_out_documents_are_never_trained_on(train, kind):
    documents = documents_with_a_word_each(60)
    held_out = [is_validation(content_hash(text.encode()), 0.3) for text in documents]
    assert 10 < sum(held_out) < 30
    found = learned(train(documents, kind), documents)
    assert [not side for side in held_out] == found


def test_the_sample_is_of_the_size_asked_for_and_from_anywhere(train):
    documents = documents_with_a_word_each(60)
    found = learned(train(documents, "bpe", vocab_size=300, sample_mb=5 * 650 / 1e6), documents)
    training = [text for text in documents if not is_validation(content_hash(text.encode()), 0.3)]
    smallest = sorted(training, key=lambda text: content_hash(text.encode())[8:])[:5]
    assert {text for text, known in zip(documents, found, strict=True) if known} <= set(smallest)
    assert sum(found) >= 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokenizer": "bytes"}, r"tokenizer: must name the file.*bytes.*\.json"),
        ({"tokenizer": "x.model"}, r"tokenizer: must name the file.*x\.model.*bpe it ends in \.json"),
        ({"tokenizer_training": None}, "tokenizer_training: is missing"),
        ({"tokenizer_training": {"vocab_size": 261}}, "tokenizer_training.vocab_size: must be at least 262, not 261"),
        ({"tokenizer_training": {"vocab_size": 1_000_001}}, "vocab_size: must be at most 1e[+]06"),
        ({"tokenizer_training": {"vocab_size": 300, "kind": "word"}}, "tokenizer_training.kind: must be 'bpe' or"),
        ({"tokenizer_training": {"vocab_size": 300, "sample_mb": 0}}, "sample_mb: must be greater than 0"),
    ],
)
def test_impossible_trainings_are_refused(tmp_path, fields, message):
    (tmp_path / "a.txt").write_text("some text")
    config = {
        "out": str(tmp_path / "out"),
        "sources": [{"kind": "text", "root": str(tmp_path), "pattern": "*.txt"}],
        "tokenizer": str(tmp_path / "new" / "tok.json"),
        "tokenizer_training": {"vocab_size": 300},
    }
    with pytest.raises(InputError, match=message):
        train_tokenizer(validate(PrepareConfig, config | fields), Console(file=io.StringIO()))
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@KINDS
def test_too_little_text_for_so_many_tokens_is_an_error(train, kind):
    with pytest.raises(InputError, match=r"tokenizer_training\.vocab_size: .*\d") as error:
        train(["one", "two", "three", "four"], kind, vocab_size=5000)
    assert "\n" not in str(error.value)


@KINDS
def test_no_text_at_all_is_an_error(train, kind):
    with pytest.raises(InputError, match="sources: no training document has text"):
        train([""], kind)


@pytest.mark.parametrize(
    ("kind", "end_token", "message"),
    [
        ("bpe", "a", "end_token: tokenizer .*tok.json reads 'a' from the text 'a'"),
        ("bpe", "Ġ", "end_token: tokenizer .*tok.json reads 'Ġ' from the text ' '"),
        ("sentencepiece", "<0x41>", "end_token: <0x41> is no control symbol of the model .*tok.model"),
        ("sentencepiece", "<s>", "tokenizer_training: sentencepiece cannot train this .*<s> is already defined"),
        ("sentencepiece", "<unk>", "tokenizer_training: sentencepiece cannot train this .*eos_piece"),
    ],
)
def test_an_end_token_that_texts_have_in_them_is_refused(train, library, kind, end_token, message):
    with pytest.raises(InputError, match=message) as error:
        train(library[:4], kind, end_token=end_token)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("deduplicate", [True, False])
def test_the_sample_is_the_texts_of_the_smallest_hashes(library, deduplicate):
    rng = random.Random(0)
    texts = [text.encode()[: rng.randint(1, 2000)] for text in library] * 3
    rng.shuffle(texts)
    for size in (1, 1000, 20_000, 10**6):
        sample = _SmallestHashes(size, distinct=deduplicate)
        for text in texts:
            sample.offer(content_hash(text), text)
        wanted = sorted(set(texts) if deduplicate else texts, key=lambda text: content_hash(text)[8:])
        assert "".join(sample.texts()) == b"".join(wanted)[:size].decode(errors="ignore")


def test_what_is_remembered_of_a_sample_does_not_grow():
    sample = _SmallestHashes(10_000, distinct=True)
    tracemalloc.start()
    used = []
    for count in (20_000, 20_000):
        for _ in range(count):
            text = random.randbytes(100)
            sample.offer(content_hash(text), text)
        used.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert used[1] < used[0] + 20_000


def test_a_file_that_exists_is_kept(train, library, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text("precious")
    with pytest.raises(InputError, match=r"tokenizer: .*mine\.json exists; remove it"):
        train(library[:1], "bpe", name=str(file.with_suffix("")))
    assert file.read_text() == "precious"


@KINDS
def test_the_end_token_of_the_corpus_is_the_tokenizers(tmp_path, kind):
    (tmp_path / "a.txt").write_text("some text to train on, and some more of it\n" * 3)
    (tmp_path / "b.txt").write_text("another text to train on, and some more of it\n" * 3)
    file = tmp_path / f"tok{SUFFIXES[kind]}"
    config = {
        "out": str(tmp_path / "out"),
        "sources": [{"kind": "text", "root": str(tmp_path), "pattern": "*.txt"}],
        "tokenizer": str(file),
        "tokenizer_training": {"vocab_size": 285, "kind": kind},
        "end_token": "<stop>",
        "validation_fraction": 0.001,
    }
    train_tokenizer(validate(PrepareConfig, config), Console(file=io.StringIO()))
    ours = load_tokenizer(str(file), "<stop>")
    assert ours.end_id not in ours.encode("<stop>") and ours.decode([ours.end_id]) == ""
    if kind == "bpe":
        assert json.loads(file.read_text())["added_tokens"][0]["content"] == "<stop>"
    else:
        assert sentencepiece.SentencePieceProcessor(model_file=str(file)).eos_id() == ours.end_id
