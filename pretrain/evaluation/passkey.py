"""Passkey retrieval (Mohtashami & Jaggi 2023, https://arxiv.org/abs/2305.16300): find a number in a long filler text.

A key counts as found where each of its tokens is the likeliest one behind the question and the tokens before it: where
greedy decoding that has all latents in use when the answer is complete writes the key.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np
import torch

from perceiver_ar.models.perceiver_ar import PerceiverAR
from pretrain.corpus import Tokenizer
from pretrain.errors import InputError

PASSKEY = "passkey"
"""The task's name."""

INTRODUCTION = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. "
    "I will quiz you about the important information there."
)
FILLER = ("The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.")
HIDDEN = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What is the pass key? The pass key is"

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the filler before the key."""
LENGTHS = 4
"""Context lengths tried at most: the model's own, half of it, ..."""
TRIALS = 10
"""Keys per length and depth."""
KEY_DIGITS = 5


@dataclass(frozen=True)
class Example:
    ids: np.ndarray
    """(tokens,) int64: an end token, the text with its question, and the answer."""
    answer_tokens: int
    """At the end."""


def make_example(tokenizer: Tokenizer, sentences: int, depth: float, key: int) -> Example:
    """The key hidden behind a share `depth` of so many filler sentences."""
    before = round(depth * sentences)
    filler = list(islice(cycle(FILLER), sentences))
    parts = (INTRODUCTION, " ".join(filler[:before]), HIDDEN.format(key=key), " ".join(filler[before:]), QUESTION)
    text = "\n".join(part for part in parts if part)
    asked, answered = tokenizer.encode(text), tokenizer.encode(f"{text} {key}")
    # Tokens may reach over the border of question and answer: the first one that differs begins the answer.
    shared = len(asked)
    while not np.array_equal(asked[:shared], answered[:shared]):
        shared -= 1
    return Example(np.concatenate([[tokenizer.end_id], answered]), len(answered) - shared)


def longest_filler(tokenizer: Tokenizer, length: int) -> int:
    """How many filler sentences a text of at most `length` tokens has room for; negative where it has none at all."""
    key = 10**KEY_DIGITS - 1
    none, some = (len(make_example(tokenizer, sentences, 0.5, key).ids) for sentences in (0, 10 * len(FILLER)))
    sentences = (length - none) * 10 * len(FILLER) // (some - none)
    while sentences > 0 and len(make_example(tokenizer, sentences, 0.5, key).ids) > length:
        sentences -= 1
    return sentences


def filler_by_length(tokenizer: Tokenizer, context: int) -> dict[int, int]:
    """The context lengths to try, in tokens, longest first, and how many filler sentences make a text of each.

    Raises `InputError` where the context is too short for any.
    """
    room = {context >> i: longest_filler(tokenizer, context >> i) for i in range(LENGTHS)}
    if room[context] < 1:
        raise InputError(f"--tasks passkey: a context of {context} tokens is too short for a text and its question")
    return {length: sentences for length, sentences in room.items() if sentences > 0}


def is_found(model: PerceiverAR, examples: Sequence[Example], device: torch.device) -> list[bool]:
    """Whether the model, on `device`, answers each of the examples, which are read as one batch."""
    longest = max(len(example.ids) for example in examples) - 1
    ids = torch.zeros(len(examples), longest, dtype=torch.int64)
    valid = torch.zeros(len(examples), longest, dtype=torch.bool)
    for row, example in enumerate(examples):
        ids[row, longest + 1 - len(example.ids) :] = torch.from_numpy(example.ids[:-1])
        valid[row, longest + 1 - len(example.ids) :] = True
    prefix_length = max(0, longest - model.config.max_latents)
    with torch.no_grad():
        logits = model(ids.to(device), prefix_length, key_valid=None if valid.all() else valid.to(device)).logits
    predicted = logits.argmax(-1).cpu().numpy()
    return [
        np.array_equal(row[-example.answer_tokens :], example.ids[-example.answer_tokens :])
        for row, example in zip(predicted, examples, strict=True)
    ]


def cell(length: int, depth: float) -> str:
    """What the metric of a length and a depth is called."""
    return f"accuracy, {length} tokens, {depth:.0%} deep"


def cells_of(metrics: Mapping[str, float]) -> dict[int, dict[float, float]]:
    """Share of keys found, by length and depth, from metrics that `cell` has named."""
    cells: dict[int, dict[float, float]] = {}
    for name, share in metrics.items():
        if match := re.fullmatch(r"accuracy, (\d+) tokens, (\d+)% deep", name):
            cells.setdefault(int(match[1]), {})[int(match[2]) / 100] = share
    return cells


def passkey_accuracy(
    model: PerceiverAR,
    tokenizer: Tokenizer,
    device: torch.device,
    filler: Mapping[int, int],
    *,
    trials: int,
    batch: int,
    progress: Callable[[int], None],
) -> dict[int, dict[float, float]]:
    """Share of keys found, by context length in tokens and depth; `filler` as `filler_by_length` gives it.

    `progress` is told of every batch how many examples it had.
    """
    accuracy: dict[int, dict[float, float]] = {}
    for length, sentences in filler.items():
        for depth in DEPTHS:
            draw = random.Random(f"{length} {depth}")
            keys = [draw.randrange(10 ** (KEY_DIGITS - 1), 10**KEY_DIGITS) for _ in range(trials)]
            examples = [make_example(tokenizer, sentences, depth, key) for key in keys]
            found = 0
            for start in range(0, trials, batch):
                found += sum(is_found(model, examples[start : start + batch], device))
                progress(len(examples[start : start + batch]))
            accuracy.setdefault(length, {})[depth] = found / trials
    return accuracy
