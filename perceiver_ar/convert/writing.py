"""A converted model as the folder that `transformers` loads."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from huggingface_hub import ModelCard, ModelCardData
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import logging
from yaml import YAMLError

from perceiver_ar.convert.sources import AUDIO, AUDIO_VOCABULARY, SourceModel
from perceiver_ar.hf import PerceiverARForCausalLM, PerceiverARHFConfig

CARD = """\
# {name}

{kind} with {parameters:,} parameters, converted from `{source}`, a model of
[krasserm/perceiver-io](https://github.com/krasserm/perceiver-io). It computes the same logits: the last
{latents:,} of {context:,} tokens, the latents, read the others once ([Perceiver AR](https://arxiv.org/abs/2202.07765)).

```python
import perceiver_ar.hf  # registers the model with transformers
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{name}")
```

{notes}

Licence: {licence}.
"""
TEXT_NOTE = 'Its tokenizer lies beside it: `AutoTokenizer.from_pretrained`, or `pipeline("text-generation")`.'
IDS_NOTE = "It has no tokenizer: prompts and continuations are ids."


def write_folder(source: SourceModel, tokenizer: PreTrainedTokenizerBase | None, out: Path) -> None:
    """Write `out` whole, or not at all.

    Raises:
        OSError: it exists and is not empty or cannot be written, or the source cannot be read.
        ValueError: the source is damaged.
    """
    temporary = out.with_name(f".tmp-{out.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    model = _hf_model(source, tokenizer)
    logging.disable_progress_bar()
    try:
        temporary.mkdir(parents=True)
        _save(model, temporary)
        for weights in temporary.glob("*.safetensors"):
            # safetensors lets nobody else read its files: these are to be as open as the folder they lie in.
            weights.chmod(temporary.stat().st_mode & 0o666)
        if tokenizer is not None:
            _save(tokenizer, temporary)
        _card(out.name, source, model, has_tokenizer=tokenizer is not None).save(temporary / "README.md")
        os.rename(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _save(part: PerceiverARForCausalLM | PreTrainedTokenizerBase, folder: Path) -> None:
    try:
        part.save_pretrained(folder)
    except Exception as error:  # where the disk refuses, their libraries raise no OSError
        raise OSError(f"{folder}: cannot be written: {error}") from error


def _hf_model(source: SourceModel, tokenizer: PreTrainedTokenizerBase | None) -> PerceiverARForCausalLM:
    weights = source.weights()
    config = PerceiverARHFConfig(**asdict(source.architecture))
    with torch.device("meta"):
        model = PerceiverARForCausalLM(config)
    model.model.load_state_dict(weights, assign=True)
    if tokenizer is not None:
        special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        model.generation_config = GenerationConfig(**special)
    elif source.model_type == AUDIO and source.architecture.vocab_size == AUDIO_VOCABULARY:
        model.generation_config = GenerationConfig(pad_token_id=AUDIO_VOCABULARY - 1)
    return model.eval()


def _card(name: str, source: SourceModel, model: PerceiverARForCausalLM, *, has_tokenizer: bool) -> ModelCard:
    licence = None if source.folder is None else _licence(source.folder / "README.md")
    data = ModelCardData(
        model_name=name,
        license=licence,
        library_name="transformers",
        pipeline_tag="text-generation" if has_tokenizer else None,
        tags=["perceiver-ar", "long-context"],
    )
    text = CARD.format(
        name=name,
        kind="A symbolic audio model" if source.model_type == AUDIO else "A language model",
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        source=source.name,
        latents=source.architecture.max_latents,
        context=source.architecture.max_seq_len,
        notes=TEXT_NOTE if has_tokenizer else IDS_NOTE,
        licence=licence or "the source does not state one",
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def _licence(card: Path) -> str | None:
    try:
        return ModelCard.load(card, ignore_metadata_errors=True).data.license
    except (OSError, ValueError, YAMLError):  # there is no card, or one that says nothing
        return None
