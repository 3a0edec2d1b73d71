import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from perceiver_ar.models.text import MaskedLM
from pretrain.config import read_config
from pretrain.corpus.reader import Batch
from pretrain.corpus.tokenizers import load_tokenizer
from pretrain.corpus.windows import IGNORED
from pretrain.data import PreparedData
from pretrain.errors import InputError
from pretrain.progress import Progress
from pretrain.tasks import open_task
from pretrain.tasks.masked_lm.config import MaskingSection
from pretrain.tasks.masked_lm.data import MaskedData, mask_windows
from pretrain.tasks.masked_lm.masking import Masker
from pretrain.tasks.masked_lm.objective import MaskedLMObjective
from pretrain.tasks.masked_lm.vocabulary import MaskingVocabulary, find_mask_id

MASK, END = 3, 2
TEXT = "one  two, three\n\n\tfour fünf six seven eight nine ten"
WORDS = ["one", "  two,", " three", "\n\n\tfour", " fünf", " six", " seven", " eight", " nine", " ten"]
BYTES = load_tokenizer("bytes")
ENCODER = {"num_latents": 4, "latent_channels": 16, "self_attention_heads": 2, "num_blocks": 1, "layers_per_block": 1}
MODEL = {"vocab_size": 262, "max_seq_len": 32, "num_input_channels": 8, "encoder": ENCODER}


@dataclasses.dataclass
class OneOf:
    """A rank among others, for what only asks which one it is."""

    rank: int
    size: int
    device = torch.device("cpu")

    def sum_(self, tensor):
        assert self.size == 1


def masker(seed=0, **settings):
    return Masker(MaskingSection(**settings), MaskingVocabulary.of(BYTES, None), seed)


def config(corpus, **sections):
    run = {
        "task": "masked_lm",
        "run": {"dir": "unused"},
        "model": MODEL,
        "data": {"corpus": str(corpus)},
        "train": {"steps": 6, "global_batch": 4, "micro_batch": 2, "precision": "fp32"},
    }
    return read_config(run | {name: run.get(name, {}) | fields for name, fields in sections.items()})


def steps(config, rank=0, size=1, start=0):
    data = MaskedData(config, PreparedData(config))
    with data.reader(OneOf(rank, size), Progress(step=start)) as reader:
        return list(reader)


@pytest.mark.parametrize("unit", ["token", "whole_word"])
def test_of_15_percent_80_are_masks_10_random_and_10_unchanged(unit):
    tokens = BYTES.encode("the quick brown fox jumps over it " * 6000)
    masked = masker(unit=unit)(tokens, sample=1)
    shown = masked.input_ids[masked.positions]
    np.testing.assert_array_equal(masked.targets, tokens[masked.positions])
    assert len(shown) / len(tokens) == pytest.approx(0.15, abs=0.005)
    assert np.mean(shown == MASK) == pytest.approx(0.8, abs=0.01)
    # A random byte is the right one in 1 of 256.
    assert np.mean((shown != MASK) & (shown != masked.targets)) == pytest.approx(0.1 * 255 / 256, abs=0.01)
    others = np.delete(np.arange(len(tokens)), masked.positions)
    np.testing.assert_array_equal(masked.input_ids[others], tokens[others])


def test_whole_words_are_masked_as_one():
    tokens, kinds = BYTES.encode(TEXT * 200), set()
    masked = masker(unit="whole_word", fraction=0.3)(tokens, sample=5)
    chosen = np.isin(np.arange(len(tokens)), masked.positions)
    start = 0
    words = [word.encode() for word in (WORDS + ["one", *WORDS[1:]] * 199)]
    words[len(WORDS) - 1 :: len(WORDS)] = [b" tenone"] * 199 + [b" ten"]  # the text is repeated without a space
    del words[len(WORDS) :: len(WORDS)]
    for word in words:
        part = slice(start, start + len(word))
        assert bytes(tokens[part].astype(np.uint8) - 6) == word
        assert len(set(chosen[part])) == 1
        if chosen[start]:
            is_mask = masked.input_ids[part] == MASK
            assert is_mask.all() or not is_mask.any()
            kinds.add(bool(is_mask.all()))
        start += len(word)
    assert kinds == {True, False}


def byte_pairs():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return tokenizer, trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)


def metaspace():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return tokenizer, trainers.BpeTrainer(vocab_size=30, special_tokens=["</s>", "<mask>"])


def word_pieces():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return tokenizer, trainers.WordPieceTrainer(vocab_size=40, special_tokens=["[UNK]", "[SEP]", "[MASK]"])


@pytest.fixture
def load(tmp_path):
    def load(make):
        tokenizer, trainer = make()
        tokenizer.train_from_iterator([TEXT.replace("\n\n\t", " ")] * 4, trainer)
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        return load_tokenizer(str(tmp_path / "tokenizer.json"))

    return load


@pytest.mark.parametrize("make", [None, byte_pairs, metaspace, word_pieces])
def test_words_are_those_between_whitespace_for_every_kind_of_tokenizer(load, make):
    tokenizer = BYTES if make is None else load(make)
    vocabulary = MaskingVocabulary.of(tokenizer, tokenizer.vocab_size)
    text = "three four fünf six seven"
    ids = np.append(tokenizer.encode(text), tokenizer.end_id)
    words = vocabulary.words(ids)
    found = [tokenizer.decode(ids[words == word]).strip() for word in dict.fromkeys(words.tolist())]
    assert found == [*text.split(), ""]
    assert len(ids) > len(text.split()) + 1
    assert not vocabulary.is_text[tokenizer.end_id]


def test_the_mask_token_is_found(load):
    assert find_mask_id(BYTES, None) == MASK
    assert find_mask_id(load(word_pieces), None) == 2
    tokenizer = load(byte_pairs)
    assert find_mask_id(tokenizer, tokenizer.vocab_size) == tokenizer.vocab_size
    with pytest.raises(InputError, match=f"masking.mask_id: .* no mask token: give .* such as {tokenizer.vocab_size} "):
        find_mask_id(tokenizer, None)
    with pytest.raises(InputError, match=r"masking.mask_id: 103 is 'a' for tokenizer bytes"):
        find_mask_id(BYTES, ord("a") + 6)


def test_special_tokens_are_never_masked_nor_drawn():
    tokens = np.tile([END, 0, 70], 500)
    masked = masker(fraction=0.9, mask_share=0, random_share=1)(tokens, sample=0)
    assert set(masked.targets) == {70}
    assert masked.input_ids[tokens == 70].min() >= BYTES.specials


def test_masks_follow_from_seed_and_sample_or_from_seed_and_text():
    tokens = BYTES.encode("some words " * 50)

    def positions(seed, sample, static):
        return masker(seed, static=static)(tokens, sample).positions.tolist()

    assert positions(0, 1, False) == positions(0, 1, False) != positions(0, 2, False)
    assert positions(0, 1, True) == positions(0, 2, True) != positions(1, 2, True)
    assert masker(static=True)(tokens[1:], 1).positions.tolist() != positions(0, 1, True)


def test_padding_moves_to_the_right():
    ids = torch.tensor([[0, 0, 70, 71, 72], [73, 74, 75, 76, 77]])
    windows = Batch(ids, ids, key_valid=ids > 0, segments=None, indices=torch.tensor([8, 9]))
    batch = mask_windows(windows, masker(fraction=0.5, mask_share=0, random_share=0))
    assert batch.tensors["input_ids"].tolist() == [[70, 71, 72, 0, 0], [73, 74, 75, 76, 77]]
    assert batch.tensors["key_valid"].tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert batch.counts.tolist() == (batch.tensors["targets"] != IGNORED).sum(1).tolist()


@pytest.mark.parametrize("windows", ["strided", "crop"])
def test_batches_are_the_same_on_any_number_of_ranks_and_from_any_step_on(corpus, windows):
    whole = steps(config(corpus, data={"windows": windows}))
    hashes = [step.sample_hashes() for step in whole]
    assert len({value for step in hashes for value in step}) == 24
    apart = [steps(config(corpus, data={"windows": windows}, train={"micro_batch": 1}), rank, 2) for rank in range(2)]
    assert [a.sample_hashes() + b.sample_hashes() for a, b in zip(*apart, strict=True)] == hashes
    later = steps(config(corpus, data={"windows": windows}), start=4)
    assert [step.sample_hashes() for step in later] == hashes[4:]


def test_an_epoch_reads_every_token_once(corpus):
    data = PreparedData(config(corpus))
    [windows] = [part.windows for part in data.samples.parts]
    read = np.concatenate([windows.window(number).input_ids for number in range(len(windows) - 1)])
    np.testing.assert_array_equal(read, windows.stream.read(0, len(read)))
    assert len(windows.stream) - len(read) <= 2 * MODEL["max_seq_len"]


def test_the_loss_is_that_of_the_masked_tokens_among_all_logits(corpus):
    torch.manual_seed(0)
    model = MaskedLM(config(corpus).model.architecture).double().eval()
    torch.nn.init.normal_(model.output_bias)
    step = steps(config(corpus, data={"windows": "crop"}))[0]
    for batch in step.micro_batches:
        output = MaskedLMObjective(model)(batch)
        inputs = batch.tensors
        logits = model(inputs["input_ids"], inputs.get("key_valid"))
        targets = torch.full_like(inputs["input_ids"], IGNORED)
        for row, (places, tokens) in enumerate(zip(inputs["positions"], inputs["targets"], strict=True)):
            targets[row, places[tokens != IGNORED]] = tokens[tokens != IGNORED]
        expected = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=IGNORED)
        torch.testing.assert_close(output.losses.sum(1), expected.sum(1))
        torch.testing.assert_close(output.loss_sum, expected.sum())
        assert output.measures == {}
        with torch.no_grad():
            right = MaskedLMObjective(model)(batch).measures["accuracy"]
        assert right.sum() == ((logits.argmax(-1) == targets) & (targets != IGNORED)).sum()


def test_validation_masks_are_the_same_for_every_seed_and_batch(corpus):
    torch.manual_seed(0)
    model = MaskedLM(config(corpus).model.architecture).eval()

    def validate(**sections):
        run = config(corpus, **sections)
        data = MaskedData(run, PreparedData(run))
        return data.validate(MaskedLMObjective(model), OneOf(0, 1), step=0)

    record = validate(evaluation={"windows": 6})
    assert 0 < record["loss"] < 10 and 0 <= record["accuracy"] <= 1
    other = validate(evaluation={"windows": 6}, run={"dir": "unused", "seed": 5}, train={"micro_batch": 4})
    assert other == pytest.approx(record)


def test_what_cannot_be_masked_is_refused(corpus):
    with pytest.raises(
        InputError, match=r"^masking.mask_share \(0.8\) and random_share \(0.3\) must add up to at most 1$"
    ):
        config(corpus, masking={"mask_share": 0.8, "random_share": 0.3})
    with pytest.raises(InputError, match=r"^data.segments must be false"):
        config(corpus, data={"segments": True})
    problems = list(open_task(config(corpus, masking={"mask_id": 300})).problems(1))
    assert problems == ["model.vocab_size: 262 is too small for the mask, id 300: add an id"]
    problems = list(open_task(config(corpus, masking={"mask_id": 100})).problems(1))
    assert problems == ["masking.mask_id: 100 is '^' for tokenizer bytes: choose another"]
    assert list(open_task(config(corpus)).problems(1)) == []


def test_what_a_decoder_leaves_out_is_as_in_masked_language_models(corpus):
    decoder = config(corpus, model={"decoder": {"cross_attention_heads": 2}}).model.decoder
    assert (decoder.cross_attention_heads, decoder.cross_attention_residual) == (2, False)


def test_flops_of_a_step_grow_with_the_batch(corpus):
    one, two = (open_task(config(corpus, train={"global_batch": rows})).step_flops() for rows in (4, 8))
    assert two == 2 * one > 0
