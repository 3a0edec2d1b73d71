"""Documents over 1 MiB are encoded in pieces where that leaves no trace in the text they decode to."""

import random

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from pretrain.corpus.tokenizers import Tokenizer, load_tokenizer
from pretrain.corpus.tokenizers.cutting import PIECE_BYTES, cut_at_newlines


@given(text=st.lists(st.sampled_from([b"\n", b"a", b"bc", b"\xc3\xa9"])).map(b"".join), size=st.integers(1, 6))
def test_cuts_are_at_the_last_newline_that_fits(text, size):
    pieces = list(cut_at_newlines(text, size))
    assert b"".join(pieces) == text and all(pieces)
    assert all(piece.endswith(b"\n") for piece in pieces[:-1])
    for number, piece in enumerate(pieces):
        lines = piece.splitlines(keepends=True)
        assert len(piece) <= size or len(lines) == 1
        if number + 1 < len(pieces):
            following = pieces[number + 1].splitlines(keepends=True)[0]
            assert len(piece) + len(following) > size, "the next line would have fitted"


@pytest.fixture(scope="module")
def long_text(library: list[str]) -> bytes:
    lines = [line for text in library for line in text.splitlines(keepends=True)]
    text = "".join(random.Random(0).sample(lines, len(lines))) * 2
    assert len(text) > 1.1 * PIECE_BYTES
    return text.encode()


def check(ours: Tokenizer, text: bytes) -> list[int]:
    """The ids, found the same by every entrance."""
    ids = ours.encode(text.decode()).tolist()
    assert ids == ours.encode_batch([b"a\n", text, b"b"])[1].tolist()
    return ids


def unchanged(spec):
    pass


def individual_digits(spec):
    digits = {"type": "Digits", "individual_digits": True}
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, spec["pre_tokenizer"]]}


def prefix_space(spec):
    spec["pre_tokenizer"]["add_prefix_space"] = True


@pytest.mark.parametrize(("change", "engine"), [(unchanged, "tiktoken"), (individual_digits, "tokenizers")])
def test_byte_level_bpe_is_cut_and_reads_back(edited_bpe, long_text, change, engine):
    path, raw = edited_bpe(change)
    ours = load_tokenizer(path)
    assert ours.engine == engine
    ids = check(ours, long_text)
    assert ours.decode(ids) == long_text.decode()
    pieces = [piece.decode() for piece in cut_at_newlines(long_text, PIECE_BYTES)]
    assert len(pieces) == 2
    assert ids == [id for piece in pieces for id in raw.encode(piece, add_special_tokens=False).ids]


def test_a_space_put_in_front_of_texts_forbids_cuts(edited_bpe, long_text):
    path, raw = edited_bpe(prefix_space)
    assert check(load_tokenizer(path), long_text) == raw.encode(long_text.decode(), add_special_tokens=False).ids


@pytest.mark.parametrize("dummy_prefix", [False, True])
def test_sentencepiece_is_cut_unless_it_puts_a_space_in_front(train_sentencepiece, tmp_path, long_text, dummy_prefix):
    options = dict(normalization_rule_name="identity", remove_extra_whitespaces=False, byte_fallback=True)
    model = train_sentencepiece(model_type="bpe", add_dummy_prefix=dummy_prefix, **options)
    (tmp_path / "some.model").write_bytes(model)
    ours = load_tokenizer(str(tmp_path / "some.model"))
    ids = check(ours, long_text)
    assert ours.decode(ids) == long_text.decode()
    raw = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [long_text] if dummy_prefix else cut_at_newlines(long_text, PIECE_BYTES)
    assert ids == [id for piece in pieces for id in raw.encode(piece.decode())]
