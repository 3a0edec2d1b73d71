"""The oracle is the model itself, by its own library."""

from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.corpus.tokenizers import Tokenizer, load_tokenizer
from pretrain.errors import InputError

KINDS = {
    "as Llama": dict(
        model_type="bpe", byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False
    ),
    "default BPE": dict(model_type="bpe"),
    "unigram": dict(model_type="unigram", user_defined_symbols=["<sep>"]),
}
TEXTS = st.text() | st.lists(
    st.sampled_from(["</s>", "<s>", "<unk>", "<0x0A>", "<sep>", " ", "\n", "\r\n", "ﬁ", "▁", "é", "def ", "x"])
).map("".join)


@pytest.fixture(scope="module", params=KINDS)
def pair(request, train_sentencepiece, tmp_path_factory) -> tuple[Tokenizer, sentencepiece.SentencePieceProcessor]:
    model = train_sentencepiece(**KINDS[request.param])
    path = tmp_path_factory.mktemp("model") / "some.model"
    path.write_bytes(model)
    return load_tokenizer(str(path)), sentencepiece.SentencePieceProcessor(model_proto=model)


@given(text=TEXTS)
@settings(max_examples=50)
def test_ids_and_text_are_the_models_own(pair, text):
    ours, model = pair
    ids = model.encode(text)
    assert ours.encode(text).tolist() == ours.encode_batch([b"x", text.encode()])[1].tolist() == ids
    assert ours.decode(ids) == model.decode(ids)
    assert not {model.bos_id(), model.eos_id()} & set(ids)


def test_what_is_known_of_a_model(pair):
    ours, model = pair
    assert (ours.vocab_size, ours.end_id, ours.engine) == (1000, model.eos_id(), "sentencepiece")
    assert ours.files == {"tokenizer.model": model.serialized_model_proto()}
    assert ours.decode([ours.end_id]) == ""


def test_end_tokens(train_sentencepiece, tmp_path):
    path = tmp_path / "no-eos.model"
    path.write_bytes(train_sentencepiece(model_type="bpe", eos_id=-1, control_symbols=["<end>"]))
    with pytest.raises(InputError, match=r"end_token: .*no end-of-sequence symbol"):
        load_tokenizer(str(path))
    with pytest.raises(InputError, match=r"end_token: .*lacks <stop>"):
        load_tokenizer(str(path), "<stop>")
    ours = load_tokenizer(str(path), "<end>")
    assert sentencepiece.SentencePieceProcessor(model_file=str(path)).id_to_piece(ours.end_id) == "<end>"
    assert ours.end_id not in ours.encode("<end>")


@pytest.mark.parametrize("end_token", ["<sep>", "e", "<unk>", "<0x41>"])
def test_an_end_token_that_texts_have_in_them_is_refused(train_sentencepiece, tmp_path, end_token):
    path = tmp_path / "a.model"
    path.write_bytes(train_sentencepiece(model_type="bpe", byte_fallback=True, user_defined_symbols=["<sep>"]))
    with pytest.raises(InputError, match=rf"end_token: {end_token} is no control symbol of the model .*a\.model"):
        load_tokenizer(str(path), end_token)


def test_a_model_file_may_lie_anywhere(train_sentencepiece, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("m.model").write_bytes(train_sentencepiece(model_type="bpe"))
    assert load_tokenizer("m.model").name == "m.model"
