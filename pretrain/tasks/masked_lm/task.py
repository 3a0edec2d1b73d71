"""Training a Perceiver IO to tell masked tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from pretrain.corpus.tokenizers import Tokenizer, load_tokenizer
from pretrain.data import open_corpora, open_data
from pretrain.data_checks import corpus_problems
from pretrain.errors import InputError
from pretrain.initial_weights import tokenizer_misfits
from pretrain.tasks.masked_lm.config import MaskedLMRunConfig
from pretrain.tasks.masked_lm.vocabulary import find_mask_id
from pretrain.tasks.perceiver_io import PerceiverIOTask

if TYPE_CHECKING:  # bad input is not to wait for torch
    from pretrain.distributed import Ranks
    from pretrain.tasks.masked_lm.data import MaskedData
    from pretrain.tasks.masked_lm.objective import MaskedLMObjective


class MaskedLMTask(PerceiverIOTask[MaskedLMRunConfig]):
    unit = "tokens"

    def _checks(self, world_size: int) -> Iterable[Iterator[str]]:
        return corpus_problems(self._config, world_size), self._mask_problems(), self._initial_model_problems()

    def open_data(self, ranks: Ranks) -> MaskedData:
        from pretrain.tasks.masked_lm.data import MaskedData

        text = open_data(self._config, ranks)
        return ranks.together(lambda: MaskedData(self._config, text))

    def build(self) -> MaskedLMObjective:
        from perceiver_ar.models.text import MaskedLM
        from pretrain.tasks.masked_lm.objective import MaskedLMObjective

        return MaskedLMObjective(MaskedLM(self._config.model.architecture))

    def step_targets(self) -> int:
        """On average, where there is no padding."""
        return round(self._config.train.global_batch * self._config.context * self._config.masking.fraction)

    def step_flops(self) -> float:
        import torch

        from perceiver_ar.cost import forward_flops_of
        from pretrain.tasks.masked_lm.batch import MaskedBatch

        def ids(length: int) -> torch.Tensor:
            return torch.zeros(1, length, dtype=torch.int64)

        batch = self._config.train.global_batch
        masked = round(self._config.context * self._config.masking.fraction)
        tensors = {"input_ids": ids(self._config.context), "positions": ids(masked), "targets": ids(masked)}
        row = MaskedBatch(tensors, torch.tensor([masked]), torch.tensor([0]))
        # Gradients cost twice the forward pass. A batch goes to a device as a tensor does.
        return 3.0 * batch * forward_flops_of(self.build, row)  # type: ignore[arg-type]

    def _tokenizer(self) -> Tokenizer:
        """Of all that is trained on. Raises InputError where the data cannot be opened."""
        if (stream := self._config.data.stream) is not None:
            return load_tokenizer(stream.tokenizer, stream.end_token)
        return next(iter(open_corpora(self._config).values())).tokenizer()

    def _mask_problems(self) -> Iterator[str]:
        config = self._config
        try:
            tokenizer = self._tokenizer()
        except InputError:  # which is a problem already
            return
        if (mask_id := find_mask_id(tokenizer, config.masking.mask_id)) >= config.vocab_size:
            yield f"model.vocab_size: {config.vocab_size} is too small for the mask, id {mask_id}: add an id"

    def _misfits(self, location: str) -> Iterator[str]:
        with suppress(InputError):  # which is a problem already
            yield from tokenizer_misfits(location, self._tokenizer())
        yield from super()._misfits(location)
