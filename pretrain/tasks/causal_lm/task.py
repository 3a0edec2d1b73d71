"""Training a Perceiver AR to predict the next token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from perceiver_ar.models.config import PerceiverARConfig
from pretrain.data import PreparedData, StreamedData, open_data
from pretrain.data_checks import corpus_problems, tokens_of
from pretrain.errors import InputError
from pretrain.initial_model import InitialModel, open_initial_model
from pretrain.preflight import has_begun
from pretrain.tasks.causal_lm.config import CausalLMConfig
from pretrain.tasks.task import CostTable

if TYPE_CHECKING:  # bad input is not to wait for torch
    from torch import nn

    from pretrain.distributed import Ranks
    from pretrain.tasks.objective import Objective


class CausalLMTask:
    unit = "tokens"

    def __init__(self, config: CausalLMConfig) -> None:
        self._config = config
        self.init_from = config.model.init_from

    def problems(self, world_size: int) -> Iterator[str]:
        yield from corpus_problems(self._config, world_size)
        if (initial := self._initial_model()) is None:
            return
        with suppress(InputError):  # which is a problem already
            for tokens in tokens_of(self._config):
                if initial.tokenizer_hash not in (None, tokens.tokenizer_hash):
                    yield (
                        f"model.init_from: {initial.name} was trained on tokens of {initial.tokenizer}, those of "
                        f"{tokens.origin} are of {tokens.tokenizer} ({tokens.tokenizer_hash}, not "
                        f"{initial.tokenizer_hash}): prepare the data with the model's tokenizer"
                    )
        yield from initial.misfits(self._config.model.architecture)

    def doubts(self) -> Iterator[str]:
        initial = self._initial_model()
        if initial is None or initial.tokenizer_hash is not None:
            return
        ids = initial.architecture.vocab_size
        for tokens in tokens_of(self._config):
            if tokens.vocab_size != ids:
                yield (
                    f"model.init_from: {initial.name} has {ids} ids and does not tell its tokenizer, that of "
                    f"{tokens.origin} has {tokens.vocab_size}: make sure that both mean the same tokens"
                )

    def _initial_model(self) -> InitialModel | None:
        """What a run starts from that has not begun."""
        return (
            None
            if self.init_from is None or has_begun(self._config.run.dir)
            else open_initial_model(self.init_from, PerceiverARConfig)
        )

    def open_data(self, ranks: Ranks) -> PreparedData | StreamedData:
        return open_data(self._config, ranks)

    def build(self) -> Objective:
        from perceiver_ar.models.perceiver_ar import PerceiverAR
        from pretrain.tasks.causal_lm.objective import CausalLM

        return CausalLM(PerceiverAR(self._config.model.architecture), self._config.run.seed)

    def initialize(self, model: nn.Module) -> None:
        if self.init_from is None:
            return
        weights = dict(model.named_parameters())
        try:
            for name, weight in open_initial_model(self.init_from, PerceiverARConfig).weights():
                weights[name].data.copy_(weight)
        except (OSError, ValueError) as error:
            raise InputError(f"model.init_from: {error}") from error

    def step_targets(self) -> int:
        return self._config.train.global_batch * self._config.model.max_latents

    def step_flops(self) -> float:
        from perceiver_ar.cost import training_flops_per_token

        # Of whole windows: padding and ignored targets cost as much as others.
        return training_flops_per_token(self._config.model) * self.step_targets()

    def attention_channels(self) -> int:
        return self._config.model.num_channels // self._config.model.num_heads

    def activation_bytes(self) -> int:
        from perceiver_ar.cost import activation_bytes

        train = self._config.train
        return activation_bytes(
            self._config.model,
            micro_batch=train.micro_batch,
            precision=train.precision,
            checkpointing=train.activation_checkpointing,
        )

    def cost_tables(self) -> Iterator[CostTable]:
        yield self._flops_table()
        if self._config.data.stream is None:
            yield self._data_table()

    def _flops_table(self) -> CostTable:
        from perceiver_ar.cost import forward_flops, kept_prefix_length

        model = self._config.model
        flops = forward_flops(model, prefix_length=kept_prefix_length(model))
        parts = {
            "prefix": flops.prefix,
            "cross-attention": flops.cross_attention,
            "self-attention": flops.self_attention,
            "head": flops.head,
            "masked halves of attention": -flops.causal_discount,
            "total": flops.total,
        }
        per_token = {part: forward / model.max_latents for part, forward in parts.items()}
        rows = [(part, f"{forward:,.0f}", f"{3 * forward:,.0f}") for part, forward in per_token.items()]
        return CostTable("FLOPs per trained token", ("part", "forward", "training"), rows)

    def _data_table(self) -> CostTable:
        data = PreparedData(self._config)
        drawn = self._config.train.steps * self._config.train.global_batch
        epochs = data.samples.epochs(drawn)
        rows: list[tuple[str, ...]] = []
        for part, count in zip(data.samples.parts, data.samples.drawn(drawn), strict=True):
            counts = data.corpora[part.name].manifest.splits["train"].tokens, len(part.windows), int(count)
            rows.append((part.name, *(f"{value:,}" for value in counts), f"{epochs[part.name]:.2f}"))
        return CostTable("Data", ("", "tokens", "windows", "samples drawn", "epochs"), rows)
