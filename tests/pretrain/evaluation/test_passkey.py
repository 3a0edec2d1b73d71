"""Passkeys: the texts, what counts as found, and a model that has learned to find them."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import Regex, models, pre_tokenizers
from torch import Tensor

from perceiver_ar.models.perceiver_ar import PerceiverAR, PerceiverARConfig
from pretrain.corpus import Tokenizer
from pretrain.corpus.tokenizers import load_tokenizer
from pretrain.corpus.tokenizers.huggingface import HuggingFaceTokenizer
from pretrain.errors import InputError
from pretrain.evaluation.passkey import (
    DEPTHS,
    FILLER,
    HIDDEN,
    INTRODUCTION,
    QUESTION,
    Example,
    filler_by_length,
    is_found,
    longest_filler,
    make_example,
    passkey_accuracy,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def by_bytes() -> Tokenizer:
    return load_tokenizer("bytes")


def test_the_key_lies_as_deep_as_asked_and_is_asked_for_at_the_end(by_bytes: Tokenizer) -> None:
    for depth in DEPTHS:
        example = make_example(by_bytes, 40, depth, 71935)
        text = by_bytes.decode(example.ids)
        introduction, *filler, question = text.split("\n")
        assert (introduction, question) == (INTRODUCTION, f"{QUESTION} 71935")
        before = text.split(HIDDEN.format(key=71935))[0].count(".") - INTRODUCTION.count(".")
        assert before == round(40 * depth)
        assert sum(line.count(".") for line in filler) == 40 + 3
        assert example.ids[0] == by_bytes.end_id
        assert by_bytes.decode(example.ids[-example.answer_tokens :]) == " 71935"


@pytest.mark.parametrize("length", [400, 777, 3000])
def test_texts_fill_the_length_asked_for(by_bytes: Tokenizer, length: int) -> None:
    sentences = longest_filler(by_bytes, length)
    sizes = [len(make_example(by_bytes, sentences, depth, 99999).ids) for depth in DEPTHS]
    assert length - max(map(len, FILLER)) - 1 <= max(sizes) <= length


def small_model() -> PerceiverAR:
    torch.manual_seed(0)
    config = PerceiverARConfig(
        vocab_size=262, max_seq_len=512, max_latents=32, num_channels=32, num_heads=2, num_layers=1, init_scale=0.5
    )
    return PerceiverAR(config).eval()


def continue_greedily(model: PerceiverAR, ids: np.ndarray, tokens: int) -> Tensor:
    """Without a cache, a token at a time."""
    read = torch.from_numpy(ids)[None]
    for _ in range(tokens):
        with torch.no_grad():
            logits = model(read, max(0, read.shape[1] - model.config.max_latents)).logits
        read = torch.cat((read, logits[:, -1:].argmax(-1)), dim=1)
    return read[0]


def test_found_is_what_greedy_decoding_writes(by_bytes: Tokenizer) -> None:
    model = small_model()
    prompts = [make_example(by_bytes, sentences, 0.5, 12345).ids[:-6] for sentences in (3, 0, 12)]
    written = [continue_greedily(model, prompt, 6).numpy() for prompt in prompts]
    assert len({tuple(ids[-6:]) for ids in written}) > 1  # an answer of its own for each
    assert is_found(model, [Example(ids, 6) for ids in written], CPU) == [True, True, True]
    for place in range(-6, 0):
        wrong = written[1].copy()
        wrong[place] = (wrong[place] + 1) % 262
        assert is_found(model, [Example(written[0], 6), Example(wrong, 6)], CPU) == [True, False]


def test_every_length_and_depth_is_tried(by_bytes: Tokenizer) -> None:
    told: list[int] = []
    filler = filler_by_length(by_bytes, 1024)
    assert list(filler) == [1024, 512]  # 256 tokens have no room for filler
    accuracy = passkey_accuracy(
        small_model(), by_bytes, CPU, {512: filler[512]}, trials=3, batch=2, progress=told.append
    )
    assert accuracy == {512: dict.fromkeys(DEPTHS, 0.0)}
    assert told == [2, 1] * len(DEPTHS)


def test_a_short_context_is_refused(by_bytes: Tokenizer) -> None:
    with pytest.raises(InputError, match="256 tokens is too short"):
        filler_by_length(by_bytes, 256)


def word_tokenizer() -> Tokenizer:
    """Words, and numbers of five digits as two tokens: a small model then has only to tell numbers from words."""
    split = pre_tokenizers.Split(Regex(r" \d{2}|\d{3}| ?[A-Za-z]+|[^\w\s]|\s"), "isolated")
    vocabulary = {"<|endoftext|>": 0, "?": 1}
    texts = (f"{INTRODUCTION}\n{' '.join(FILLER)} {FILLER[0]}", f"{HIDDEN.format(key='')}\n{QUESTION}")
    numbers = [f" {n}" for n in range(10, 100)] + [f"{n:03d}" for n in range(1000)]
    for word in [word for text in texts for word, _ in split.pre_tokenize_str(text)] + numbers:
        vocabulary.setdefault(word, len(vocabulary))
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = split
    return HuggingFaceTokenizer(tokenizer, "words", end_id=0)


def train_on_passkeys(model: PerceiverAR, draw: Callable[[], Example], steps: int) -> None:
    """With the loss of the answers alone, 32 texts a step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 100, 1) * (1 - step / steps))
    for _ in range(steps):
        examples = [draw() for _ in range(32)]
        longest = max(len(example.ids) for example in examples)
        ids = torch.from_numpy(np.stack([np.pad(example.ids, (longest - len(example.ids), 0)) for example in examples]))
        valid = torch.arange(longest - 1) >= longest - torch.tensor([[len(example.ids)] for example in examples])
        targets = ids[:, -model.config.max_latents :].clone()
        targets[:, : -examples[0].answer_tokens] = -100
        prefix_length = longest - 1 - model.config.max_latents
        optimizer.zero_grad()
        loss = model(ids[:, :-1], prefix_length, key_valid=valid, targets=targets).loss
        (loss.total / (targets != -100).sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


@pytest.mark.slow
def test_a_model_trained_on_passkeys_finds_them_by_its_prefix() -> None:
    tokenizer, latents = word_tokenizer(), 16
    config = PerceiverARConfig(
        vocab_size=tokenizer.vocab_size,
        max_seq_len=256,
        max_latents=latents,
        num_channels=64,
        num_heads=4,
        num_layers=1,
        norm="layernorm",
        init_scale=0.05,
    )
    torch.manual_seed(0)
    model, rng = PerceiverAR(config), random.Random(0)
    filler = filler_by_length(tokenizer, config.max_seq_len)
    sentences = filler[config.max_seq_len]

    def draw() -> Example:
        return make_example(tokenizer, rng.randint(1, sentences), rng.random(), rng.randrange(10_000, 100_000))

    train_on_passkeys(model, draw, steps=500)
    model.eval()

    accuracy = passkey_accuracy(model, tokenizer, CPU, filler, trials=10, batch=10, progress=lambda done: None)
    assert list(accuracy) == [256, 128]
    assert all(share >= 0.9 for of_length in accuracy.values() for share in of_length.values()), accuracy

    # No key lies among so few latents: cut off the prefix, and none can be known.
    unseen = [make_example(tokenizer, sentences, depth, rng.randrange(10_000, 100_000)) for depth in DEPTHS * 4]
    assert sum(is_found(model, unseen, CPU)) >= 18
    cut = [Example(example.ids[-latents - 1 :], example.answer_tokens) for example in unseen]
    assert not any(is_found(model, cut, CPU))
