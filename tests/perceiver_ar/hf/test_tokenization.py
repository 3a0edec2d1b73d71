from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from perceiver_ar.hf import byte_tokenizer, saved_tokenizer
from pretrain.corpus.tokenizers import load_tokenizer

TEXTS = st.text() | st.lists(st.sampled_from(["[PAD]", "[EOS]", " ", "\n", "\r\n", "é", "🙂", "x", "\0"])).map("".join)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    """As it comes back from an exported folder."""
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer(4096).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@given(text=TEXTS)
@settings(max_examples=200, deadline=None)
def test_ids_and_text_are_those_of_the_corpus(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert ids == load_tokenizer("bytes").encode(text).tolist() == [byte + 6 for byte in text.encode()]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_all_bytes_decode(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == 262
    for ids in ([byte + 6] for byte in range(256)):
        assert tokenizer.decode(ids) == load_tokenizer("bytes").decode(ids)


def test_special_tokens_stand_where_the_corpus_has_them(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.eos_token_id == load_tokenizer("bytes").end_id
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.decode([2, 103, 2], skip_special_tokens=True) == "a"


def test_batches_are_padded_on_the_left(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = tokenizer(["abc", "d"], padding=True)
    assert batch.input_ids == [[103, 104, 105], [0, 0, 106]]
    assert batch.attention_mask == [[1, 1, 1], [0, 0, 1]]


def test_a_trained_tokenizer_keeps_its_ids(tmp_path: Path) -> None:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        ["the cat sat on the mat"] * 4,
        trainers.BpeTrainer(
            vocab_size=280, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    trained.save(str(tmp_path / "tokenizer.json"))
    corpus_tokenizer = load_tokenizer(str(tmp_path))

    saved_tokenizer(tmp_path / "tokenizer.json", corpus_tokenizer.end_id, 128).save_pretrained(tmp_path / "exported")
    exported = AutoTokenizer.from_pretrained(tmp_path / "exported")

    for text in ("the mat", "a cat<|endoftext|>, é\n"):
        assert exported(text).input_ids == corpus_tokenizer.encode(text).tolist()
    assert exported.eos_token_id == corpus_tokenizer.end_id
