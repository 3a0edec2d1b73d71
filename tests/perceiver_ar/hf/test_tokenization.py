import io
import random
import sysconfig
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from perceiver_ar.hf.tokenization import byte_tokenizer, saved_tokenizer, sentencepiece_tokenizer
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


AS_LLAMA = dict(
    model_type="bpe",
    byte_fallback=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    allow_whitespace_only_pieces=True,
    split_digits=True,
)
MODELS = {
    "as this project trains it": AS_LLAMA | {"add_dummy_prefix": False},
    "as Llama": AS_LLAMA,
    "as Gemma": AS_LLAMA | {"add_dummy_prefix": False, "user_defined_symbols": ["<sep>", "\n\n", "\t"]},
    "default BPE": {"model_type": "bpe"},
    "BPE with NFKC and bytes": {"model_type": "bpe", "normalization_rule_name": "nfkc", "byte_fallback": True},
    "default unigram": {"model_type": "unigram"},
    "unigram with bytes": AS_LLAMA | {"model_type": "unigram", "character_coverage": 1.0},
}
SPELLED = [
    "<s>",
    "</s>",
    "<unk>",
    "<0x0A>",
    "<sep>",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    "\0",
    "é",
    "ﬁ",
    "①",
    "def f(x):",
]


def train_sentencepiece(options: dict) -> bytes:
    folder = Path(sysconfig.get_path("stdlib"))
    lines = [line for path in sorted(folder.glob("a*.py")) for line in path.read_text(encoding="utf-8").splitlines()]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=600, minloglevel=2, **options
    )
    return model.getvalue()


@pytest.fixture(scope="module", params=MODELS)
def exported_model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PreTrainedTokenizerFast, sentencepiece.SentencePieceProcessor]:
    """A SentencePiece model as it comes back from an exported folder, and the model itself."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    model = train_sentencepiece(MODELS[request.param])
    (folder / "tokenizer.model").write_bytes(model)
    oracle = sentencepiece.SentencePieceProcessor(model_proto=model)
    sentencepiece_tokenizer(folder / "tokenizer.model", oracle.eos_id(), 4096).save_pretrained(folder / "exported")
    return AutoTokenizer.from_pretrained(folder / "exported"), oracle


def assert_same_ids(exported: PreTrainedTokenizerFast, oracle: sentencepiece.SentencePieceProcessor, text: str) -> None:
    """Or, from a unigram model, those of a cutting that is as likely up to rounding; merges in order have no ties."""
    ids, expected = exported(text).input_ids, oracle.encode(text)
    if exported.backend_tokenizer.model.__class__.__name__ == "Unigram" and ids != expected:
        assert sum(map(oracle.get_score, ids)) == pytest.approx(sum(map(oracle.get_score, expected)), rel=1e-5)
        assert oracle.decode(ids) == oracle.decode(expected)
    else:
        assert ids == expected


# Whatever joins the character before it; `tokenizers` folds some of these sequences in another way.
ALONE = st.characters(
    exclude_categories=["Cs", "Mn", "Mc", "Me", "Cf", "Sk", "Lm"],
    exclude_characters="".join(map(chr, [*range(0x1100, 0x1200), *range(0xA960, 0xA980), *range(0xD7B0, 0xD800)])),
)


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_a_sentencepiece_model_keeps_its_ids_and_texts(exported_model, data: st.DataObject) -> None:
    exported, oracle = exported_model
    folds = oracle.encode("①", out_type=str) == oracle.encode("1", out_type=str)
    characters = st.text(ALONE if folds else st.characters(exclude_categories=["Cs"]))
    text = data.draw(characters | st.lists(st.sampled_from(SPELLED)).map("".join))
    assert_same_ids(exported, oracle, text)
    ids = oracle.encode(text)
    if oracle.unk_id() not in ids:  # written as ⁇ by one and left out by the other
        assert exported.decode(ids, skip_special_tokens=True) == oracle.decode(ids)


def test_a_sentencepiece_model_keeps_the_ids_of_real_texts(exported_model) -> None:
    exported, oracle = exported_model
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("[e-g]*.py"))
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines(keepends=True)]
    random.Random(0).shuffle(lines)
    for start in range(0, 3000, 10):
        assert_same_ids(exported, oracle, "".join(lines[start : start + 10]))


def test_the_end_of_a_sentencepiece_model_is_the_end_of_the_exported_one(exported_model) -> None:
    exported, oracle = exported_model
    assert len(exported) == oracle.vocab_size()
    assert exported.eos_token_id == exported.pad_token_id == exported.bos_token_id == oracle.eos_id()
    ids = oracle.encode("x y")
    assert exported.decode([*ids, oracle.eos_id()], skip_special_tokens=True) == oracle.decode(ids)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model_type": "char"}, "neither a BPE nor a unigram model"),
        ({"model_type": "bpe", "treat_whitespace_as_suffix": True}, "a space"),
        (AS_LLAMA | {"user_defined_symbols": ["<sep>"], "add_dummy_prefix": True}, "gets other ids"),
    ],
)
def test_a_model_without_an_exact_counterpart_is_refused(tmp_path: Path, options: dict, reason: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece(options | {"hard_vocab_limit": False}))
    with pytest.raises(ValueError, match=reason):
        sentencepiece_tokenizer(tmp_path / "tokenizer.model", 2, 128)
