"""What a run does that trains a Perceiver IO to classify texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from perceiver_ar.models.perceiver_config import MaskedLMConfig, TextClassifierConfig
from pretrain.corpus.tokenizers import Tokenizer, load_tokenizer
from pretrain.errors import InputError
from pretrain.initial_model import open_initial_model
from pretrain.initial_weights import architecture_misfits, load_initial_weights, tokenizer_misfits
from pretrain.tasks.perceiver_io import PerceiverIOTask
from pretrain.tasks.text_classification.config import FROM_MASKED_LM, TextClassificationConfig
from pretrain.tasks.text_classification.texts import LabelledTexts, open_texts

if TYPE_CHECKING:  # bad input is not to wait for torch
    from torch import nn

    from pretrain.distributed import Ranks
    from pretrain.tasks.text_classification.examples import TextData
    from pretrain.tasks.text_classification.objective import TextClassificationObjective

ENCODER = ("input_adapter", "encoder")
"""The parts of a model that read a text: all that a masked language model and a classifier share."""


class TextClassificationTask(PerceiverIOTask[TextClassificationConfig]):
    unit = "texts"

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        try:
            return load_tokenizer(self._config.data.tokenizer)
        except InputError as error:
            raise type(error)(f"data.{error}") from error

    @cached_property
    def _texts(self) -> tuple[LabelledTexts, LabelledTexts]:
        return open_texts(self._config.data, self._config.model.num_classes)

    def _checks(self, world_size: int) -> Iterable[Iterator[str]]:
        return self._tokenizer_problems(), self._text_problems(), self._initial_model_problems()

    def open_data(self, ranks: Ranks) -> TextData:
        from pretrain.tasks.text_classification.examples import TextData

        return ranks.together(lambda: TextData(self._config, *self._texts))

    def build(self) -> TextClassificationObjective:
        from perceiver_ar.models.text import TextClassifier
        from pretrain.tasks.text_classification.objective import TextClassificationObjective

        model = TextClassifier(self._config.model.architecture)
        if self._config.model.freeze_encoder:
            for part in ENCODER:
                model.get_submodule(part).requires_grad_(False)
        return TextClassificationObjective(model)

    def initialize(self, model: nn.Module) -> None:
        if self.init_from is not None:
            load_initial_weights(model, self.init_from, None if _is_classifier(self.init_from) else ENCODER)

    def step_targets(self) -> int:
        return self._config.train.global_batch

    def step_flops(self) -> float:
        import torch

        from perceiver_ar.cost import forward_flops_of
        from perceiver_ar.models.text import TextClassifier

        model = self._config.model
        tokens = torch.zeros(1, model.max_seq_len, dtype=torch.int64, device="meta")
        forward = forward_flops_of(lambda: TextClassifier(model.architecture), tokens)
        # Gradients cost twice the forward pass; those of a decoder alone next to nothing.
        return forward * self._config.train.global_batch * (1 if model.freeze_encoder else 3)

    def _text_problems(self) -> Iterator[str]:
        train, _ = self._texts
        if len(train) < self._config.train.global_batch:
            yield f"train.global_batch: {self._config.train.global_batch} is more than the {len(train)} training texts"

    def _tokenizer_problems(self) -> Iterator[str]:
        tokenizer, ids = self._tokenizer, self._config.model.vocab_size
        if tokenizer.vocab_size > ids:
            yield f"model.vocab_size: {ids} is too small, tokenizer {tokenizer.name} has {tokenizer.vocab_size} ids"

    def _misfits(self, location: str) -> Iterator[str]:
        names = None if _is_classifier(location) else FROM_MASKED_LM
        yield from architecture_misfits(self._config.model.architecture, location, names)
        yield from tokenizer_misfits(location, self._tokenizer)


def _is_classifier(location: str) -> bool:
    initial = open_initial_model(location, MaskedLMConfig, TextClassifierConfig)
    return isinstance(initial.architecture, TextClassifierConfig)
