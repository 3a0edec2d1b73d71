"""The loss of a text under a model, and what the prefix contributes to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console

from perceiver_ar.models.config import PerceiverARConfig
from pretrain.console import TOKENS, show_progress
from pretrain.evaluation.strided import EvaluationResult, evaluate_stream, perplexity
from pretrain.evaluation.texts import Text
from pretrain.exported_model import ExportedModel
from pretrain.tasks.causal_lm.objective import CausalLM
from pretrain.trained_model import TrainedModel


@dataclass(frozen=True)
class Reading:
    """How a text is read."""

    stride: int
    """Latents scored per window."""
    batch: int
    """Windows per forward pass."""
    windows: int
    """Scored at most, spread evenly; 0 is all."""
    ablation_windows: int
    """... by the ablation."""
    reaches: Sequence[float]
    """Fractions of the prefix that the ablation leaves, ascending from 0; none where there is no prefix."""


class TextScorer:
    """A model, moved to `device`, that texts are read by."""

    def __init__(
        self, model: TrainedModel | ExportedModel, device: torch.device, reading: Reading, console: Console
    ) -> None:
        self._task = CausalLM(model.model(), seed=0).to(device, model.dtype).eval()
        self._config, self._within_documents = model.architecture, model.within_documents
        self._device, self._reading, self._console = device, reading, console

    def __call__(self, text: Text) -> dict[str, Any]:
        """Full pass, then the ablation: what ``evaluation.json`` holds about a text."""
        config, reading = self._config, self._reading
        windows = -(-(len(text.stream) - 1) // reading.stride)
        covered = min(windows, reading.windows or windows)
        ablated = min(covered, reading.ablation_windows or covered)
        full = self._score(text, "whole prefix" if reading.reaches else "text", covered, None)
        ablation = {}
        for reach in reading.reaches:
            whole = reach == 1 and ablated == covered
            prefix = prefix_tokens(config, reach)
            ablation[reach] = full if whole else self._score(text, f"reach {reach:g}", ablated, prefix)
        return {
            "location": text.location,
            "split": text.split,
            **_numbers(full),
            "tokens_per_second": full.tokens_per_second,
            "words": round(full.tokens / text.tokens_per_word),
            "word_perplexity": perplexity(full.loss * text.tokens_per_word),
            "context": config.max_seq_len,
            "latents": config.max_latents,
            "stride": reading.stride,
            "windows": covered,
            "windows_of_split": windows,
            "loss_by_position": full.loss_by_position,
            "ablation_windows": ablated,
            "ablation": [
                {"reach": reach, "prefix_tokens": prefix_tokens(config, reach), **_numbers(result)}
                | {"gain": ablation[0.0].bits_per_byte - result.bits_per_byte}
                for reach, result in ablation.items()
            ],
            "baselines": None if text.baselines is None else text.baselines.model_dump(exclude={"sample_bytes"}),
        }

    def _score(self, text: Text, label: str, windows: int, reach: int | None) -> EvaluationResult:
        stride = self._reading.stride
        with show_progress(self._console, label, windows * stride, TOKENS) as advance:
            return evaluate_stream(
                self._task,
                text.stream,
                context=self._config.max_seq_len,
                latents=self._config.max_latents,
                stride=stride,
                batch=self._reading.batch,
                tokens_per_byte=text.tokens_per_byte,
                device=self._device,
                segments=self._within_documents,
                reach=reach,
                max_windows=windows,
                progress=lambda windows: advance(windows * stride),
            )


def prefix_tokens(config: PerceiverARConfig, reach: float) -> int:
    """How many tokens a fraction of the longest prefix is."""
    return round(reach * (config.max_seq_len - config.max_latents))


def _numbers(result: EvaluationResult) -> dict[str, float]:
    names = ("tokens", "loss", "accuracy", "perplexity", "bits_per_byte")
    return {name: getattr(result, name) for name in names}
