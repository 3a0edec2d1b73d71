"""Perceiver AR as a Hugging Face model: the same `PerceiverAR` module inside what `transformers` expects."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.generation.configuration_utils import GenerationMode
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from perceiver_ar.hf.cache import PerceiverARHFCache
from perceiver_ar.hf.configuration import PerceiverARHFConfig
from perceiver_ar.models.perceiver_ar import PerceiverAR, PerceiverAROutput


class PerceiverARPreTrainedModel(PreTrainedModel):
    """Loading, saving and the call of the model that both heads share; all weights lie under ``model.``."""

    config_class = PerceiverARHFConfig
    base_model_prefix = ""
    _no_split_modules = ["CrossAttentionLayer", "SelfAttentionLayer"]  # noqa: RUF012
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

    def _read(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        prefix_length: int | None,
        past_key_values: PerceiverARHFCache | None,
    ) -> PerceiverAROutput:
        """Run the model on what it can take of `input_ids`: the last `max_seq_len` tokens, `max_latents` as latents."""
        state = None if past_key_values is None else past_key_values.state
        seen = 0 if state is None else state.tokens_seen
        unread = 0 if past_key_values is None else past_key_values.tokens_unread
        if not seen:
            unread = max(0, input_ids.shape[1] - self.config.max_seq_len)
            input_ids = input_ids[:, unread:]
            if past_key_values is not None:
                past_key_values.tokens_unread = unread
        length = input_ids.shape[1]
        if state is not None and state.latents_seen:
            prefix_length = 0
        else:
            asked_for = 0 if prefix_length is None else prefix_length - unread - seen
            prefix_length = max(0, asked_for, length - self.config.max_latents)
        key_valid = None
        if attention_mask is not None and not attention_mask.all():
            key_valid = attention_mask[:, -(seen + length) :].bool()
        return self.model(input_ids, prefix_length, key_valid=key_valid, cache=state)

    def _cache(self, given: PerceiverARHFCache | None, use_cache: bool | None) -> PerceiverARHFCache | None:
        wanted = not self.training and (self.config.use_cache if use_cache is None else use_cache)
        return PerceiverARHFCache(self.config.perceiver_ar) if given is None and wanted else given


class PerceiverARModel(PerceiverARPreTrainedModel):
    """Perceiver AR without its output projection: final hidden states of the latents."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: PerceiverARHFCache | None = None,
        use_cache: bool | None = None,
        prefix_length: int | None = None,
    ) -> BaseModelOutputWithPast:
        """As `PerceiverARForCausalLM.forward`; `last_hidden_state` is (batch, latents, num_channels)."""
        cache = self._cache(past_key_values, use_cache)
        output = self._read(input_ids, attention_mask, prefix_length, cache)
        return BaseModelOutputWithPast(last_hidden_state=output.hidden, past_key_values=cache)


class PerceiverARForCausalLM(PerceiverARPreTrainedModel, GenerationMixin):
    """Perceiver AR that predicts the next token."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: PerceiverARHFCache | None = None,
        use_cache: bool | None = None,
        prefix_length: int | None = None,
        **loss_options: Any,
    ) -> CausalLMOutputWithPast:
        """Predict the token after each latent: `logits` (batch, latents, vocab_size).

        `input_ids` (batch, length) of any length: of the last `max_seq_len` tokens, those behind the first
        `prefix_length` are latents, at most `max_latents` (by default as many as there can be). `attention_mask`
        (batch, length, with what the cache has seen before it) is 0 at padding. `labels` (batch, length) are the
        input ids, -100 where no loss is wanted: the shift is made here, and labels of the prefix count for nothing.
        """
        cache = self._cache(past_key_values, use_cache)
        output = self._read(input_ids, attention_mask, prefix_length, cache)
        logits, loss = output.logits, None
        if labels is not None:
            labels = labels[:, -output.hidden.shape[1] :]
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **loss_options)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        num_latents: int | None = None,
        latent_policy: Literal["sliding", "refresh"] = "sliding",
        **kwargs: Any,
    ) -> Any:
        """`GenerationMixin.generate`, for prompts and continuations of any length.

        The prompt's last `num_latents` tokens start as latents (default: half of `max_latents`), and every generated
        token becomes one. Until `max_latents` are in use, decoding with the cache equals decoding without. Then
        ``sliding`` lets the oldest latent go, at constant cost a token: its influence stays in the later latents'
        keys and values, which the model has not seen in training. ``refresh`` instead recomputes the last
        `num_latents` tokens as the only latents, every ``max_latents - num_latents`` tokens or so: exact, and with
        ``num_latents=max_latents`` (a full stack for every token) equal to decoding without a cache. The rows of a
        batch are refreshed together: one whose prompt is shorter than `num_latents` earlier than it would be alone.

        Raises ValueError for `num_latents` outside 1 to `max_latents`, and where a model with learned positions would
        have to go beyond `max_seq_len` with a cache.
        """
        config = self.config
        num_latents = max(1, config.max_latents // 2) if num_latents is None else num_latents
        if not 1 <= num_latents <= config.max_latents:
            raise ValueError(f"num_latents ({num_latents}) must be between 1 and max_latents ({config.max_latents})")
        if latent_policy not in ("sliding", "refresh"):
            raise ValueError(f"latent_policy ({latent_policy!r}) must be 'sliding' or 'refresh'")
        prompt = inputs if inputs is not None else kwargs.get("input_ids")
        prompt_length = 1 if prompt is None else prompt.shape[1]
        kwargs.setdefault("prefix_length", max(0, prompt_length - num_latents))
        if latent_policy == "refresh":
            kwargs["refresh_latents"] = num_latents
        return super().generate(inputs, generation_config, **kwargs)  # type: ignore[misc]

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: PerceiverARHFCache | None = None,
        refresh_latents: int | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Also restarts full latents under ``refresh``: their tokens are given again."""
        if past_key_values is not None and refresh_latents is not None and past_key_values.state.latents_seen:
            new = next_sequence_length or input_ids.shape[1]
            state = past_key_values.state
            if state.latents_seen + new > self.config.max_latents:
                next_sequence_length = max(refresh_latents, new)
                state.restart_latents(next_sequence_length - new)
        return super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids,  # type: ignore[arg-type]
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            **kwargs,
        )

    def _prepare_cache_for_generation(  # type: ignore[override]
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: GenerationMode,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        if generation_config.cache_implementation not in (None, "dynamic"):
            kind = generation_config.cache_implementation
            raise ValueError(f"cache_implementation ({kind!r}) is not available for Perceiver AR; leave it out")
        if generation_mode == GenerationMode.ASSISTED_GENERATION:
            raise ValueError("assisted decoding takes tokens back, which a Perceiver AR cache cannot do")
        if generation_config.use_cache is False:
            return
        if self.config.learned_positions and max_cache_length >= self.config.max_seq_len:
            raise ValueError(
                f"learned positions end at max_seq_len ({self.config.max_seq_len}): ask for fewer new tokens, or "
                "decode with use_cache=False"
            )
        if model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = PerceiverARHFCache(self.config.perceiver_ar)
