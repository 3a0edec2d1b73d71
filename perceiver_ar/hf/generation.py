"""How Perceiver AR generates: what it needs beside `GenerationMixin`, which has the search and sampling algorithms."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.generation.configuration_utils import GenerationMode

from perceiver_ar.hf.cache import PerceiverARHFCache
from perceiver_ar.hf.contrastive import contrastive_search


class PerceiverARGenerationMixin(GenerationMixin):
    """`generate` for models whose latents are the last tokens, with or without a cache."""

    config: Any
    __call__: Callable[..., Any]

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

        A positive `penalty_alpha`, with `top_k`, asks for contrastive search (see `contrastive_search`).
        ``cache_implementation="static"`` allocates the cache once, so that compiled steps are not compiled again.

        Raises ValueError for `num_latents` outside 1 to `max_latents`, where a model with learned positions would have
        to go beyond `max_seq_len` with a cache, and for what cannot work: `prefill_chunk_size`, drafts (of an
        `assistant_model` or by prompt look-up) under ``refresh`` or with a static cache.
        """
        max_latents = self.config.max_latents
        num_latents = max(1, max_latents // 2) if num_latents is None else num_latents
        if not 1 <= num_latents <= max_latents:
            raise ValueError(f"num_latents ({num_latents}) must be between 1 and max_latents ({max_latents})")
        if latent_policy not in ("sliding", "refresh"):
            raise ValueError(f"latent_policy ({latent_policy!r}) must be 'sliding' or 'refresh'")
        prompt = inputs if inputs is not None else kwargs.get("input_ids")
        prompt_length = 1 if prompt is None else prompt.shape[1]
        kwargs.setdefault("prompt_length", prompt_length)
        kwargs.setdefault("prefix_length", max(0, prompt_length - num_latents))
        if latent_policy == "refresh":
            kwargs["refresh_latents"] = num_latents
        options, _ = self._prepare_generation_config(generation_config, **kwargs)
        if options.get_generation_mode(kwargs.get("assistant_model")) == GenerationMode.CONTRASTIVE_SEARCH:
            kwargs.setdefault("custom_generate", partial(contrastive_search, streamer=kwargs.get("streamer")))
        return super().generate(inputs, generation_config, **kwargs)  # type: ignore[misc]

    def _prepare_generation_config(
        self, generation_config: GenerationConfig | None, **kwargs: Any
    ) -> tuple[GenerationConfig, dict[str, Any]]:
        """Without warnings of what is right: a `top_k` for contrastive search, and how drafts are asked for."""
        if generation_config is not None and generation_config.is_assistant:
            generation_config = deepcopy(generation_config)
            kwargs = generation_config.update(**kwargs)
        candidates = kwargs.pop("top_k", None) if kwargs.get("penalty_alpha") else None
        options, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)  # type: ignore[misc]
        if candidates is not None:
            options.top_k = candidates
        return options, model_kwargs

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: PerceiverARHFCache | None = None,
        attention_mask: Tensor | None = None,
        prompt_length: int | None = None,
        refresh_latents: int | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Also reads the prompt before drafts that come with it, and restarts full latents under ``refresh``."""
        if past_key_values is not None and not past_key_values.state.decoding:
            if prompt_length is not None and input_ids.shape[1] > prompt_length:
                next_sequence_length = self._read_prompt(
                    input_ids, past_key_values, attention_mask, prompt_length, **kwargs
                )
        elif past_key_values is not None and refresh_latents is not None:
            new = next_sequence_length or input_ids.shape[1]
            next_sequence_length = new + self._restart_full_latents(past_key_values, new, refresh_latents)
        if attention_mask is not None and past_key_values is not None:
            attention_mask = attention_mask[:, -(next_sequence_length or input_ids.shape[1]) :]
            # The strides of a slice grow with every token, for which compiled steps would be compiled again.
            attention_mask = attention_mask.clone(memory_format=torch.contiguous_format)
        return super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids,  # type: ignore[arg-type]
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,  # type: ignore[arg-type]
            **kwargs,
        )

    def _restart_full_latents(self, past_key_values: PerceiverARHFCache, new: int, refresh_latents: int) -> int:
        """Where there is no room for `new` more latents, drop all: how many tokens then are to be read again."""
        max_latents = self.config.max_latents
        latents_seen = min(past_key_values.state.latents_seen, max_latents)
        if latents_seen + new <= max_latents:
            return 0
        # With this norm, the keys of a token that is no latent any more are others than before.
        again = latents_seen if self.config.kv_norm == "prefix" else max(0, refresh_latents - new)
        past_key_values.restart_latents(again, refresh_latents)
        return again

    def _read_prompt(
        self,
        input_ids: Tensor,
        past_key_values: PerceiverARHFCache,
        attention_mask: Tensor | None,
        prompt_length: int,
        **kwargs: Any,
    ) -> int:
        """Read the first `prompt_length` tokens, then take the last one back: how many are left to be read.

        What a prompt's latents see ends with the prompt. Drafts must be read as tokens that follow it.
        """
        prompt = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids[:, :prompt_length],  # type: ignore[arg-type]
            past_key_values=past_key_values,
            attention_mask=None if attention_mask is None else attention_mask[:, :prompt_length],  # type: ignore[arg-type]
            **kwargs,
        )
        self(**prompt)
        past_key_values.crop(-1)
        return input_ids.shape[1] - prompt_length + 1

    def create_masks_for_generate(self, attention_mask: Tensor | None = None, **_: Any) -> Tensor | None:
        """The mask as it is: the model makes its own from it, also for static caches."""
        return attention_mask

    def _prepare_cache_for_generation(  # type: ignore[override]
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: GenerationMode,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        kind = generation_config.cache_implementation
        if kind not in (None, "dynamic", "static"):
            raise ValueError(f"cache_implementation ({kind!r}) must be 'dynamic' or 'static' for Perceiver AR")
        if generation_config.prefill_chunk_size is not None:
            raise ValueError("prefill_chunk_size cannot work for Perceiver AR: latents read their context in one piece")
        if generation_mode == GenerationMode.ASSISTED_GENERATION:
            if "refresh_latents" in model_kwargs:
                raise ValueError("assisted decoding and prompt look-up need latent_policy='sliding'")
            if kind == "static":
                raise ValueError("assisted decoding and prompt look-up need a dynamic cache: they take tokens back")
        if generation_config.use_cache is False:
            return
        if self.config.learned_positions and max_cache_length >= self.config.max_seq_len:
            raise ValueError(
                f"learned positions end at max_seq_len ({self.config.max_seq_len}): ask for fewer new tokens, or "
                "decode with use_cache=False"
            )
        cache: PerceiverARHFCache | None = model_kwargs.get("past_key_values")
        if cache is None:
            static_tokens = max(max_cache_length, generation_config.max_cache_len or 0) if kind == "static" else None
            cache = PerceiverARHFCache(self.config.perceiver_ar, static_tokens)
            cache.tokens_shared = model_kwargs["prompt_length"]
            model_kwargs["past_key_values"] = cache
        elif cache.static_tokens is not None and cache.static_tokens < max_cache_length:
            raise ValueError(
                f"the static cache has room for {cache.static_tokens} tokens, and {max_cache_length} are to be read: "
                "give the call that makes it a larger max_cache_len"
            )
