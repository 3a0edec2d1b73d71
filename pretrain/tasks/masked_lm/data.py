"""Windows of token corpora with some of their tokens masked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pretrain.corpus.reader import Batch, StepBatch, StepReader, stack_windows
from pretrain.corpus.windows import Windows
from pretrain.data import PreparedData, StreamedData, mixture_weights
from pretrain.tasks.examples import validate_examples
from pretrain.tasks.masked_lm.batch import MaskedBatch, masked_batch
from pretrain.tasks.masked_lm.config import MaskedLMRunConfig
from pretrain.tasks.masked_lm.masking import Masker
from pretrain.tasks.masked_lm.vocabulary import MaskingVocabulary
from pretrain.tasks.task import Record, Score

if TYPE_CHECKING:
    from pretrain.distributed import Ranks
    from pretrain.progress import Progress

VALIDATION_SEED = 0
"""Runs of all seeds are validated on the same masks."""


class MaskedData:
    """What a masked language model trains on: the windows of `text`, masked as they are read."""

    def __init__(self, config: MaskedLMRunConfig, text: PreparedData | StreamedData) -> None:
        """Raises InputError where the tokenizer has no mask token and the configuration names none."""
        self._config, self._text = config, text
        corpus = next(iter(text.corpora.values()))
        self._tokenizer = corpus.tokenizer()
        self._vocabulary = MaskingVocabulary.of(self._tokenizer, config.masking.mask_id)
        self._mask = Masker(config.masking, self._vocabulary, config.run.seed)
        static = config.masking.model_copy(update={"static": True})
        self._validation = {
            name: MaskedWindows(
                corpus.validation_windows(context=config.context, latents=config.context, segments=False),
                Masker(static, self._vocabulary, VALIDATION_SEED),
                fingerprint=corpus.manifest.fingerprint,
            )
            for name, corpus in text.corpora.items()
        }

    def reader(self, ranks: Ranks, progress: Progress) -> StepReader:
        return MaskedReader(self._text.reader(ranks, progress), self._mask)

    def validate(self, score: Score, ranks: Ranks, step: int) -> Record:
        """Loss in nats per masked token and accuracy, weighted as the mixture is after `step` steps. Collective."""
        config = self._config
        results = {
            name: validate_examples(
                windows, score, ranks, batch=config.train.micro_batch, at_most=config.evaluation.windows
            )
            for name, windows in self._validation.items()
        }
        weights = mixture_weights(config, step)
        record: Record = {
            measure: sum(weight * results[name][measure] for name, weight in weights.items())
            for measure in ("loss", "accuracy")
        }
        if len(results) > 1:
            record["loss_of"] = {name: result["loss"] for name, result in results.items()}
        return record

    def epochs(self, progress: Progress) -> dict[str, float]:
        return self._text.epochs(progress)

    def measures(self, loss: float, step: int) -> Record:
        return {}

    def changes_at(self, step: int) -> bool:
        return self._text.changes_at(step)

    def describe(self) -> Record:
        return self._text.describe() | {"mask_id": self._vocabulary.mask_id}

    def place(self, sample: int) -> Record:
        return self._text.place(sample)

    def show(self, batch: Any, row: int) -> str:
        """The text that the model is given: special tokens, masks among them, have none."""
        return self._tokenizer.decode(batch.tensors["input_ids"][row].numpy())


class MaskedReader(StepReader):
    """The steps of another reader, masked by a thread of its own."""

    def __init__(self, steps: StepReader, mask: Masker) -> None:
        self._unmasked, self._mask = steps, mask
        super().__init__(self._masked(), read_ahead=1)

    def close(self) -> None:
        super().close()
        self._unmasked.close()

    def _masked(self) -> Iterator[StepBatch]:
        while not self._closing.is_set():
            try:
                step = self._unmasked.next_unless(self._closing.is_set)
            except StopIteration:
                return
            if step is not None:
                yield replace(step, micro_batches=[mask_windows(batch, self._mask) for batch in step.micro_batches])


class MaskedWindows:
    """Numbered windows as examples for validation."""

    def __init__(self, windows: Windows, mask: Masker, *, fingerprint: str) -> None:
        self._windows, self._mask = windows, mask
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        return len(self._windows)

    def batch(self, numbers: np.ndarray, samples: np.ndarray) -> MaskedBatch:
        windows: Sequence[Any] = [self._windows.window(number) for number in numbers.tolist()]
        return mask_windows(Batch(*stack_windows(windows), torch.from_numpy(samples)), self._mask)

    def describe(self, number: int) -> str:
        return f"window {number}"


def mask_windows(batch: Any, mask: Masker) -> MaskedBatch:
    """A batch of windows, masked; their padding moves from the left to the right."""
    length = batch.input_ids.shape[1]
    rows = batch.input_ids.numpy()
    padding = np.zeros(len(rows), dtype=int) if batch.key_valid is None else (~batch.key_valid).sum(1).numpy()
    samples = batch.indices.tolist()
    masked = [mask(ids[skip:], sample) for ids, skip, sample in zip(rows, padding, samples, strict=True)]
    return masked_batch(masked, length, batch.indices)
