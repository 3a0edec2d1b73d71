import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
import xxhash
from tokenizers import models, pre_tokenizers

from pretrain.corpus.tokenizers import load_saved_tokenizer, load_tokenizer
from pretrain.errors import InputError

PANIC = b"""{"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
"normalizer": {"type": "Precompiled", "precompiled_charsmap": "!!"}, "pre_tokenizer": null, "post_processor": null,
"decoder": null, "truncation": null, "padding": null}"""
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
        ("panic.json", PANIC, "panic.json is no fast tokenizer"),
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


def save_words(folder: Path, special: list[str], **components: object) -> str:
    """A tokenizer of whole words, `x` for unknown ones."""
    tokenizer = tokenizers.Tokenizer(models.WordLevel({"x": 0, "</s>": 1, "a": 2}, unk_token="x"))
    for name, component in components.items():
        setattr(tokenizer, name, component)
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


def test_the_usual_end_token_is_found_or_another_one_named(tmp_path):
    folder = save_words(tmp_path, ["<eos>", "<|endoftext|>"])
    assert load_tokenizer(folder).end_id == 4
    assert load_tokenizer(folder, "<eos>").end_id == 3
    assert load_tokenizer(folder).vocab_size == 5
    with pytest.raises(InputError, match=r"end_token: .*lacks y;"):
        load_tokenizer(folder, "y")


def test_an_end_token_that_texts_have_in_them_is_refused(tmp_path, edited_bpe):
    for end_token in (None, "</s>", "a"):
        with pytest.raises(InputError, match=r"end_token: tokenizer .* reads '.*' from the text") as error:
            load_tokenizer(save_words(tmp_path, ["</s>"]), end_token)
        assert str(tmp_path) in str(error.value)
    path, _ = edited_bpe(lambda spec: None)
    for end_token, text in (("a", "a"), ("Ġ", " "), ("Ġthe", " the")):
        with pytest.raises(InputError, match=f"reads '{end_token}' from the text '{text}'"):
            load_tokenizer(path, end_token)


def test_a_saved_tokenizer_is_known_by_the_bytes_of_its_file(edited_bpe, tmp_path):
    """Another version of the library may write the same tokenizer in another way."""
    path, raw = edited_bpe(lambda spec: None)
    content = raw.to_str(pretty=True).encode()
    (tmp_path / "tokenizer.json").write_bytes(content)
    saved = load_saved_tokenizer(tmp_path, path, 1)
    assert saved.hash == xxhash.xxh64_hexdigest(content) and saved.files == {"tokenizer.json": content}


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ({"model": models.WordLevel({"a": 0}, unk_token="gone")}, r"\(WordLevel error: Missing"),
        ({"pre_tokenizer": pre_tokenizers.FixedLength(0)}, r"\(chunk size must be non-zero\)"),
    ],
)
def test_what_the_library_cannot_encode_is_one_line(tmp_path, components, message):
    """It raises bare Exceptions, and panics that are none."""
    save_words(tmp_path, ["<eos>"], **components)
    tokenizer = load_saved_tokenizer(tmp_path, "some name", 0)
    for encode in (tokenizer.encode, lambda text: load_tokenizer(str(tmp_path))):
        with pytest.raises(InputError, match=f"^tokenizer: .* cannot encode a text {message}") as error:
            encode("b")
        assert "\n" not in str(error.value)
