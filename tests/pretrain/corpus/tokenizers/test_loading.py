import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
import xxhash

from pretrain.corpus.tokenizers import load_saved_tokenizer, load_tokenizer
from pretrain.errors import InputError

ROOT = Path(__file__).parents[4]


def test_importing_the_package_loads_no_heavy_library():
    """Every worker process imports it."""
    code = "import sys, pretrain.corpus.tokenizers; print({'torch', 'transformers', 'datasets'} & sys.modules.keys())"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_a_tokenizer_is_known_by_its_serialisation(edited_bpe):
    """Corpora were prepared under these hashes."""
    path, raw = edited_bpe(lambda spec: None)
    ours = load_tokenizer(path)
    assert ours.files == {"tokenizer.json": raw.to_str().encode()}
    assert ours.hash == xxhash.xxh64_hexdigest(raw.to_str().encode())
    assert (ours.name, ours.vocab_size, ours.end_id) == (path, 1000, 1)


@pytest.mark.parametrize("kind", ["json", "model"])
def test_saved_files_make_the_same_tokenizer(kind, edited_bpe, train_sentencepiece, tmp_path, library):
    if kind == "json":
        path, _ = edited_bpe(lambda spec: None)
    else:
        path = str(tmp_path / "any name.model")
        Path(path).write_bytes(train_sentencepiece(model_type="bpe"))
    first = load_tokenizer(path)
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, content in first.files.items():
        (folder / name).write_bytes(content)
    Path(path).unlink()
    again = load_saved_tokenizer(folder, first.name, first.end_id)
    assert (again.hash, again.name, again.end_id, again.files) == (first.hash, first.name, first.end_id, first.files)
    assert again.encode(library[0]).tolist() == first.encode(library[0]).tolist()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.json", None, "there is no file .*gone.json"),
        ("gone.model", None, "there is no file .*gone.model"),
        ("bad.json", b"{}", "bad.json is no fast tokenizer"),
        ("bad.model", b"no model", "bad.model is no SentencePiece model"),
        ("empty.model", b"", "empty.model is no SentencePiece model"),
    ],
)
def test_files_that_are_no_tokenizers_are_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        load_tokenizer(str(tmp_path / name))
    assert str(error.value).startswith("tokenizer: ") and "\n" not in str(error.value)


def test_bytes_need_no_end_token():
    assert load_tokenizer("bytes").engine == "numpy"
    with pytest.raises(InputError, match=r"end_token: .*own"):
        load_tokenizer("bytes", end_token="</s>")


def test_the_usual_end_token_is_found_or_another_one_named(tmp_path):
    vocabulary = {"<eos>": 3, "</s>": 7, "x": 0}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="x")).save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(str(tmp_path)).end_id == 7
    assert load_tokenizer(str(tmp_path), "<eos>").end_id == 3
    assert load_tokenizer(str(tmp_path)).vocab_size == 8
    with pytest.raises(InputError, match=r"end_token: .*lacks y;"):
        load_tokenizer(str(tmp_path), "y")
