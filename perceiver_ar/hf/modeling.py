"""Perceiver AR as a Hugging Face model: the same `PerceiverAR` module inside what `transformers` expects."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from perceiver_ar.hf.cache import PerceiverARHFCache
from perceiver_ar.hf.configuration import PerceiverARHFConfig
from perceiver_ar.hf.generation import PerceiverARGenerationMixin
from perceiver_ar.models.perceiver_ar import PerceiverAR, PerceiverAROutput, draw_prefix_keep


class PerceiverARPreTrainedModel(PreTrainedModel):
    """Loading, saving and the call of the model that both heads share; all weights lie under ``model.``."""

    config_class = PerceiverARHFConfig
    base_model_prefix = ""
    # The first and the last layer share weights, and all layers share masks: it runs on one device.
    _no_split_modules = ["PerceiverAR"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012

    def __init__(self, config: PerceiverARHFConfig) -> None:
        super().__init__(config)
        self.model = PerceiverAR(config.perceiver_ar)
        self.post_init()

    def init_weights(self) -> None:
        """Nothing to do: `PerceiverAR` has drawn its own weights."""

    def _init_weights(self, module: nn.Module) -> None:
        """Draw weights that a checkpoint lacks."""
        super()._init_weights(module)
        self.model.initialize(module)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed.tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed.tokens = value

    def get_output_embeddings(self) -> nn.Module | None:
        """None where the output projection is the token embedding's own matrix."""
        return self.model.unembed

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.model.unembed = new_embeddings

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As for other models. New tokens get the mean of the output biases, where there are some."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        bias = self.model.output_bias
        if bias is not None:
            resized = bias.detach().mean().repeat(embeddings.num_embeddings)
            kept = min(len(bias), len(resized))
            resized[:kept] = bias.detach()[:kept]
            self.model.output_bias = nn.Parameter(resized, bias.requires_grad)
        return embeddings

    def _read(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        attention_mask: Tensor | None,
        prefix_length: int | None,
        past_key_values: PerceiverARHFCache | None,
        logits_to_keep: int,
    ) -> PerceiverAROutput:
        """Run the model on what it can take of `input_ids`: the last `max_seq_len` tokens, `max_latents` as latents."""
        if input_ids is None or inputs_embeds is not None:
            raise ValueError("Perceiver AR reads input_ids: inputs_embeds are not available")
        if self.model.output_weight.is_meta:
            # A product with such a weight is not refused by torch: it is whatever lies in memory.
            raise ValueError("Perceiver AR cannot run with offloaded weights: load it with a device_map of one device")
        cache = None if past_key_values is None else past_key_values.state
        latents_begin = 0
        if cache is None or not cache.decoding:
            seen = max(0, input_ids.shape[1] - self.config.max_seq_len)
            input_ids = input_ids[:, seen:]
            if past_key_values is not None:
                past_key_values.tokens_unread += seen
                seen = past_key_values.get_seq_length()
            if past_key_values is not None and past_key_values.latents_next is not None:
                prefix = input_ids.shape[1] - past_key_values.latents_next
            else:
                prefix = 0 if prefix_length is None else prefix_length - seen
            latents_begin = max(0, prefix, input_ids.shape[1] - self.config.max_latents)
        key_valid = None
        if attention_mask is not None:
            key_valid = attention_mask[:, -input_ids.shape[1] :].bool()
            # Without padding there are faster kernels; but with a cache that has some, no need to look.
            if (cache is None or cache.padding is None) and key_valid.all():
                key_valid = None
        return self.model(
            input_ids,
            latents_begin,
            key_valid=key_valid,
            prefix_keep=self._draw_prefix_keep(input_ids, latents_begin),
            cache=cache,
            logits_to_keep=logits_to_keep,
        )

    def _draw_prefix_keep(self, input_ids: Tensor, prefix_length: int) -> Tensor | None:
        dropout = self.config.prefix_dropout if self.training else 0.0
        if int(prefix_length * dropout) == 0:
            return None
        seed = int(torch.randint(2**31, (1,)))
        return draw_prefix_keep(seed, torch.arange(len(input_ids), device=input_ids.device), prefix_length, dropout)

    def _cache(self, given: PerceiverARHFCache | None, use_cache: bool | None) -> PerceiverARHFCache | None:
        wanted = not self.training and (self.config.use_cache if use_cache is None else use_cache)
        return PerceiverARHFCache(self.config.perceiver_ar) if given is None and wanted else given


class PerceiverARModel(PerceiverARPreTrainedModel):
    """Perceiver AR without its output projection: final hidden states of the latents."""

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: PerceiverARHFCache | None = None,
        use_cache: bool | None = None,
        prefix_length: int | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> BaseModelOutputWithPast:
        """As `PerceiverARForCausalLM.forward`; `last_hidden_state` is (batch, latents, num_channels)."""
        cache = self._cache(past_key_values, use_cache)
        output = self._read(input_ids, inputs_embeds, attention_mask, prefix_length, cache, logits_to_keep=1)
        return BaseModelOutputWithPast(last_hidden_state=output.hidden, past_key_values=cache)


class PerceiverARForCausalLM(PerceiverARPreTrainedModel, PerceiverARGenerationMixin):
    """Perceiver AR that predicts the next token."""

    # `Trainer` would divide by all labels of a batch, also by those of prefixes, which have no loss.
    accepts_loss_kwargs = False

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: PerceiverARHFCache | None = None,
        use_cache: bool | None = None,
        prefix_length: int | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: Tensor | int | None = None,
    ) -> CausalLMOutputWithPast:
        """Predict the token after each latent: `logits` (batch, latents, vocab_size).

        `input_ids` (batch, length) of any length: of the last `max_seq_len` tokens, those behind the first
        `prefix_length` are latents, at most `max_latents` (by default as many as there can be). `attention_mask`
        (batch, length, or with what the cache has seen before it) is 0 at padding. In training, the configuration's
        prefix dropout is applied, drawn from torch's generator.

        `labels` (batch, length) are the input ids, -100 where no loss is wanted: the shift is made here, and labels of
        the prefix count for nothing. `loss` is the mean cross-entropy in nats, or with `num_items_in_batch` the sum
        divided by it. `logits_to_keep` asks for the logits of so many latents, the last ones. `output_hidden_states`
        gives one hidden state, the final one of the latents.

        Raises ValueError for `inputs_embeds`.
        """
        cache = self._cache(past_key_values, use_cache)
        if labels is not None:
            logits_to_keep = 0
        output = self._read(input_ids, inputs_embeds, attention_mask, prefix_length, cache, logits_to_keep)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                output.logits,
                labels[:, -output.hidden.shape[1] :],
                vocab_size=self.config.vocab_size,
                num_items_in_batch=num_items_in_batch,
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=output.logits,
            past_key_values=cache,
            hidden_states=(output.hidden,) if output_hidden_states else None,
        )


__all__ = ["PerceiverARForCausalLM", "PerceiverARModel", "PerceiverARPreTrainedModel"]
