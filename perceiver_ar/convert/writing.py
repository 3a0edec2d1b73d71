"""A converted model as the folder that `transformers` loads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from huggingface_hub import ModelCard
from torch import nn
from transformers import GenerationConfig, PerceiverConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from perceiver_ar.convert.card import KINDS, card
from perceiver_ar.convert.images import image_arguments, transformers_arguments
from perceiver_ar.convert.names import COUNTED_BATCHES, renamed_back
from perceiver_ar.convert.sources import AUDIO, AUDIO_VOCABULARY, SourceModel
from perceiver_ar.convert.to_transformers import to_transformers
from perceiver_ar.convert.transformers_perceiver import transformers_names
from perceiver_ar.hf import PerceiverIOImageProcessor
from perceiver_ar.models.config import PerceiverARConfig
from perceiver_ar.models.perceiver_config import ImageClassifierConfig


class Part(Protocol):
    """Of a folder: model, tokenizer or image processor."""

    def save_pretrained(self, folder: Path, /) -> Any: ...


def write_folder(source: SourceModel, tokenizer: PreTrainedTokenizerBase | None, out: Path) -> None:
    """Write our model to `out`, whole or not at all.

    Raises:
        OSError: it exists and is not empty or cannot be written, or the source cannot be read.
        ValueError: the source is damaged.
    """
    model = _our_model(source, tokenizer)
    parts: list[Part] = [model] if tokenizer is None else [model, tokenizer]
    if isinstance(source.architecture, ImageClassifierConfig):
        parts.append(PerceiverIOImageProcessor(**image_arguments(source.folder, source.architecture)))
    _write(parts, card(out.name, source, _count(model), has_tokenizer=tokenizer is not None), out)


def write_transformers_folder(source: SourceModel, tokenizer: PreTrainedTokenizerBase | None, out: Path) -> None:
    """Write the Perceiver of transformers that is this model to `out`, whole or not at all.

    Raises as `write_folder`; ValueError also where there is no such Perceiver.
    """
    config = source.architecture
    if isinstance(config, PerceiverARConfig):
        raise ValueError(f"{source.name}: transformers has no Perceiver AR")
    try:
        head, values = to_transformers(config)
    except ValueError as error:
        raise ValueError(f"{source.name}: {error}") from None
    with torch.device("meta"):
        model = getattr(transformers, head)(PerceiverConfig(**values, **_labels(source)))
    counts = {name: torch.tensor(0) for name, _ in model.named_buffers() if name in COUNTED_BATCHES}
    model.load_state_dict(renamed_back(source.weights(), transformers_names(config)) | counts, assign=True)
    parts: list[Part] = [model.eval()] if tokenizer is None else [model.eval(), tokenizer]
    if isinstance(config, ImageClassifierConfig):
        arguments = transformers_arguments(image_arguments(source.folder, config))
        parts.append(transformers.PerceiverImageProcessorPil(**arguments))
    _write(parts, card(out.name, source, _count(model), has_tokenizer=tokenizer is not None, head=head), out)


def _write(parts: Sequence[Part], model_card: ModelCard, out: Path) -> None:
    temporary = out.with_name(f".tmp-{out.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    logging.disable_progress_bar()
    try:
        temporary.mkdir(parents=True)
        for part in parts:
            _save(part, temporary)
        for weights in temporary.glob("*.safetensors"):
            # safetensors lets nobody else read its files: these are to be as open as the folder they lie in.
            weights.chmod(temporary.stat().st_mode & 0o666)
        model_card.save(temporary / "README.md")
        os.rename(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _save(part: Part, folder: Path) -> None:
    try:
        part.save_pretrained(folder)
    except Exception as error:  # where the disk refuses, their libraries raise no OSError
        raise OSError(f"{folder}: cannot be written: {error}") from error


def _our_model(source: SourceModel, tokenizer: PreTrainedTokenizerBase | None) -> Any:
    weights = source.weights()
    kind = KINDS[type(source.architecture)]
    config = kind.model.config_class(**asdict(source.architecture), **_labels(source))
    with torch.device("meta"):
        model = kind.model(config)
    model.model.load_state_dict(weights, assign=True)
    if isinstance(source.architecture, PerceiverARConfig):
        if tokenizer is not None:
            special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
            model.generation_config = GenerationConfig(**special)
        elif source.model_type == AUDIO and source.architecture.vocab_size == AUDIO_VOCABULARY:
            model.generation_config = GenerationConfig(pad_token_id=AUDIO_VOCABULARY - 1)
    return model.eval()


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _labels(source: SourceModel) -> dict[str, Any]:
    if not source.labels:
        return {}
    return dict(id2label=dict(source.labels), label2id={name: label for label, name in source.labels.items()})
