"""What evaluation reads: the tokens, sizes and words of corpora and of plain files."""

from pathlib import Path

import pytest

from pretrain.corpus import open_corpus
from pretrain.corpus.tokenizers import load_tokenizer
from pretrain.errors import InputError
from pretrain.evaluation import texts
from pretrain.evaluation.texts import corpus_text, files_text
from tests.pretrain.evaluation.merging_tokenizer import save_merging_tokenizer

FIRST, SECOND = "A word, two.\n  Ünd mehr", "\n\nlast one here\n"
WORDS = 5 + 3


@pytest.fixture(scope="module")
def merging(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    save_merging_tokenizer(path, [FIRST, SECOND] * 10)
    return path


def write(folder: Path) -> list[Path]:
    files = [folder / "first.txt", folder / "second.txt"]
    for file, content in zip(files, (FIRST, SECOND), strict=True):
        file.write_text(content)
    return files


@pytest.mark.parametrize("name", ["bytes", "merging"])
def test_files_are_documents_between_end_tokens(tmp_path: Path, merging: Path, name: str) -> None:
    tokenizer = load_tokenizer(str(merging) if name == "merging" else name)
    (tmp_path / "scratch").mkdir()
    text = files_text(write(tmp_path), tokenizer, tmp_path / "scratch")

    end, documents = [tokenizer.end_id], [tokenizer.encode(document).tolist() for document in (FIRST, SECOND)]
    expected = [*end, *documents[0], *end, *documents[1], *end]
    assert text.stream.read(0, len(text.stream)).tolist() == expected
    assert text.stream.document_starts(0, len(expected)).tolist() == [1, len(documents[0]) + 2]
    size = len((FIRST + SECOND).encode())
    assert text.tokens_per_byte * size == pytest.approx(len(expected) - 1)
    assert text.tokens_per_word * WORDS == pytest.approx(len(expected) - 1)
    assert (text.location, text.split) == (str(tmp_path), None)
    assert text.baselines is not None and text.baselines.sample_bytes == size


def test_words_of_a_corpus_are_those_of_its_documents(prepare, tmp_path: Path) -> None:
    documents = [f"{number} is a number\nof {number} things" for number in range(30)]
    text = corpus_text(open_corpus(prepare(tmp_path, documents)), "validation")
    words = 7 * text.stream.document_ends().size
    assert text.tokens_per_word * words == pytest.approx(len(text.stream) - 1)


def test_words_of_a_long_text_are_counted_at_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "long.txt").write_text("abc " * 1000 + "abcdefg " * 1000)
    monkeypatch.setattr(texts, "COUNTED_TOKENS", 2001)
    (tmp_path / "scratch").mkdir()
    text = files_text([tmp_path / "long.txt"], load_tokenizer("bytes"), tmp_path / "scratch")
    assert text.tokens_per_word == pytest.approx(4)


@pytest.mark.parametrize(
    "content, message", [(b"\xff\xfe", "as UTF-8 text"), (b" \n", "holds no text"), (None, "cannot read")]
)
def test_files_without_text_are_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        files_text([tmp_path / "x.txt"], load_tokenizer("bytes"), tmp_path)
