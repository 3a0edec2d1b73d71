"""Contrastive search (Su et al. 2022, https://arxiv.org/abs/2202.06417)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

if TYPE_CHECKING:
    from perceiver_ar.hf.generation import PerceiverARGenerationMixin


def contrastive_search(
    model: PerceiverARGenerationMixin,
    input_ids: Tensor,
    *,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    streamer: BaseStreamer | None = None,
    **model_kwargs: Any,
) -> Tensor | GenerateDecoderOnlyOutput:
    """Of the `top_k` most probable tokens, take the one whose hidden state is least like all before it.

    A token's score is ``(1 - penalty_alpha) * probability - penalty_alpha * similarity``, the similarity being the
    largest cosine between its final hidden state and those of the prompt's latents and of the tokens chosen so far,
    each as it was when its token was read. ``penalty_alpha=0`` is greedy search.

    Given to `generate` as its `custom_generate`, which `PerceiverARForCausalLM.generate` does when asked for a
    positive `penalty_alpha`. Costs a step of `top_k` rows for each token, and that many rows of cache.
    """
    candidates, alpha = min(generation_config.top_k, model.config.vocab_size), generation_config.penalty_alpha
    batch = len(input_ids)
    inputs = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **model_kwargs)
    output = model(**inputs | {"output_hidden_states": True})
    past, logits = _Past(output, model_kwargs.get("attention_mask")), output.logits[:, -1]
    model_kwargs = _repeat(model._update_model_kwargs_for_generation(output, model_kwargs), candidates)
    cache = model_kwargs.get("past_key_values")
    first_rows = torch.arange(batch, device=input_ids.device) * candidates
    unfinished = torch.ones(batch, dtype=torch.bool, device=input_ids.device)
    scores: tuple[Tensor, ...] = ()
    raw_logits: tuple[Tensor, ...] = ()
    while unfinished.any():
        raw_logits += (logits.float(),)
        scores += (logits_processor(input_ids, logits.float()),)  # type: ignore[arg-type]
        probabilities, tokens = scores[-1].softmax(-1).topk(candidates)
        continuations = torch.cat((input_ids.repeat_interleave(candidates, 0), tokens.view(-1, 1)), dim=1)
        inputs = model.prepare_inputs_for_generation(
            continuations, next_sequence_length=None if cache is None else 1, **model_kwargs
        )
        output = model(**inputs | {"output_hidden_states": True})
        directions = _directions(output)[:, -1].unflatten(0, (batch, candidates))
        chosen = ((1 - alpha) * probabilities - alpha * past.similarity(directions)).argmax(-1)
        rows = first_rows + chosen
        if cache is not None:
            # The rows of a prompt differ in nothing but the candidate.
            cache.state.reorder_newest(rows.repeat_interleave(candidates), tokens=1)
        model_kwargs = model._update_model_kwargs_for_generation(output, model_kwargs)
        logits = output.logits[rows, -1]
        past.add(directions[torch.arange(batch), chosen])
        new = tokens.gather(1, chosen[:, None])
        if generation_config._pad_token_tensor is not None:
            new = new.where(unfinished[:, None], generation_config._pad_token_tensor)
        input_ids = torch.cat((input_ids, new), dim=1)
        unfinished = unfinished & ~stopping_criteria(input_ids, scores)
        if streamer is not None:
            streamer.put(new.flatten().cpu())
    if streamer is not None:
        streamer.end()
    if not generation_config.return_dict_in_generate:
        return input_ids
    if cache is not None:
        cache.batch_select_indices(first_rows)
    return GenerateDecoderOnlyOutput(
        sequences=input_ids,  # type: ignore[arg-type]
        scores=scores if generation_config.output_scores else None,  # type: ignore[arg-type]
        logits=raw_logits if generation_config.output_logits else None,  # type: ignore[arg-type]
        past_key_values=cache,
    )


class _Past:
    """The hidden states that new ones are compared with."""

    def __init__(self, output: Any, attention_mask: Tensor | None) -> None:
        self._directions = _directions(output)
        latents = self._directions.shape[:2]
        self._valid = self._directions.new_ones(latents, dtype=torch.bool)
        if attention_mask is not None:
            self._valid = attention_mask[:, -latents[1] :].bool()

    def similarity(self, directions: Tensor) -> Tensor:
        """The largest cosine of each: (batch, candidates, channels) -> (batch, candidates)."""
        return (directions @ self._directions.mT).masked_fill(~self._valid[:, None], -1).amax(-1)

    def add(self, directions: Tensor) -> None:
        """(batch, channels)"""
        self._directions = torch.cat((self._directions, directions[:, None]), dim=1)
        self._valid = F.pad(self._valid, (0, 1), value=True)


def _directions(output: Any) -> Tensor:
    """Final hidden states of the latents as fp32 vectors of length 1: (batch, latents, channels)."""
    return F.normalize(output.hidden_states[-1].float(), dim=-1)


def _repeat(model_kwargs: dict[str, Any], times: int) -> dict[str, Any]:
    """Every row of mask and cache `times` times."""
    if model_kwargs.get("past_key_values") is not None:
        model_kwargs["past_key_values"].batch_repeat_interleave(times)
    if model_kwargs.get("attention_mask") is not None:
        model_kwargs = model_kwargs | {"attention_mask": model_kwargs["attention_mask"].repeat_interleave(times, 0)}
    return model_kwargs
