"""Texts as batches of tokens."""

from __future__ import annotations

import numpy as np
import torch
import xxhash

from pretrain.corpus.tokenizers import Tokenizer, load_tokenizer
from pretrain.corpus.windows import PADDING
from pretrain.tasks.examples import ExampleBatch, ExampleData
from pretrain.tasks.task import Record
from pretrain.tasks.text_classification.config import TextClassificationConfig
from pretrain.tasks.text_classification.texts import LabelledTexts

SHOWN_CHARACTERS = 200
"""Of a text that people are to recognise."""


class TextExamples:
    """Texts cut to `max_seq_len` tokens, shorter ones padded on the right."""

    def __init__(self, texts: LabelledTexts, tokenizer: Tokenizer, max_seq_len: int) -> None:
        self._texts, self._tokenizer, self._max_seq_len = texts, tokenizer, max_seq_len
        self.fingerprint = xxhash.xxh64_hexdigest(f"{texts.fingerprint} {tokenizer.hash} {max_seq_len}".encode())

    def __len__(self) -> int:
        return len(self._texts)

    def batch(self, numbers: np.ndarray, samples: np.ndarray) -> ExampleBatch:
        """`input_ids` (rows, max_seq_len) int64, `key_valid` of the same shape, bool, and `labels` (rows,) int64."""
        encoded = self._tokenizer.encode_batch([self._texts.text(number).encode() for number in numbers.tolist()])
        input_ids = np.full((len(numbers), self._max_seq_len), PADDING, dtype=np.int64)
        key_valid = np.zeros_like(input_ids, dtype=bool)
        for row, ids in enumerate(encoded):
            kept = ids[: self._max_seq_len]
            input_ids[row, : len(kept)], key_valid[row, : len(kept)] = kept, True
        tensors = {"input_ids": input_ids, "key_valid": key_valid, "labels": self._texts.labels[numbers]}
        return ExampleBatch(
            {name: torch.from_numpy(array) for name, array in tensors.items()},
            torch.ones(len(numbers), dtype=torch.int64),
            torch.from_numpy(samples),
        )

    def describe(self, number: int) -> str:
        texts = self._texts
        text = " ".join(texts.text(number).split())[:SHOWN_CHARACTERS]
        return f"{texts.place(number)}, {texts.classes[texts.labels[number]]}: {text}"


class TextData(ExampleData):
    """Texts to train and to validate on; a checkpoint remembers how to read others."""

    def __init__(self, config: TextClassificationConfig, train: LabelledTexts, validation: LabelledTexts) -> None:
        """Raises InputError where the tokenizer cannot be loaded."""
        self._tokenizer = load_tokenizer(config.data.tokenizer)
        length = config.model.max_seq_len
        to_train, to_validate = (TextExamples(texts, self._tokenizer, length) for texts in (train, validation))
        super().__init__(config, to_train, to_validate, train.classes)

    def describe(self) -> Record:
        tokenizer = self._tokenizer
        return super().describe() | {"tokenizer": tokenizer.name, "tokenizer_hash": tokenizer.hash}
