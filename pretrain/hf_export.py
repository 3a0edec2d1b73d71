"""A trained model as a Hugging Face model, and as the folder that holds one."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast
from transformers.utils import logging

from perceiver_ar.hf import PerceiverARForCausalLM, PerceiverARHFConfig
from perceiver_ar.hf.tokenization import byte_tokenizer, saved_tokenizer, sentencepiece_tokenizer
from pretrain.corpus import Corpus
from pretrain.corpus.tokenizers import BYTES
from pretrain.errors import InputError
from pretrain.model_card import model_card
from pretrain.trained_model import TrainedModel


def export(trained: TrainedModel, corpora: dict[str, Corpus], out: Path, dtype: str) -> None:
    """Write the folder whole, in place of an earlier one, or not at all; `dtype` is ``float32`` or ``bfloat16``.

    Raises `InputError` where the disk refuses.
    """
    logging.disable_progress_bar()
    temporary, old = (out.with_name(f".{kind}-{out.name}") for kind in ("tmp", "old"))
    try:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(parents=True)
        hf_model(trained, getattr(torch, dtype)).save_pretrained(temporary)
        hf_tokenizer(trained, next(iter(corpora.values()))).save_pretrained(temporary)
        model_card(out.name, trained, corpora).save(temporary / "README.md")
        if out.exists():
            os.rename(out, old)
        os.rename(temporary, out)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise InputError(f"--out: cannot write {out}: {error}") from error


def hf_model(trained: TrainedModel, dtype: torch.dtype = torch.float32) -> PerceiverARForCausalLM:
    """The checkpoint as a Hugging Face model, in evaluation mode."""
    model = trained.model()
    config = PerceiverARHFConfig(**dataclasses.asdict(model.config))
    with torch.device("meta"):
        wrapped = PerceiverARForCausalLM(config)
    wrapped.model = model
    wrapped.to(dtype)  # type: ignore[arg-type]
    end = trained.state["data"]["end_id"]
    # A document begins behind the end of another: that is what the model has seen before every first token.
    wrapped.generation_config = GenerationConfig(bos_token_id=end, eos_token_id=end, pad_token_id=end)
    return wrapped.eval()


def hf_tokenizer(trained: TrainedModel, corpus: Corpus | None = None) -> PreTrainedTokenizerFast:
    """The fast tokenizer with the ids the model was trained on; `corpus` if it is not where the run had it.

    Raises `InputError` where the run's tokenizer has no exact fast counterpart.
    """
    context, data = trained.config.model.max_seq_len, trained.state["data"]
    if data["tokenizer"] == BYTES:
        return byte_tokenizer(context)
    corpus = corpus or next(iter(trained.corpora().values()))
    [file] = [corpus.folder / name for name in corpus.manifest.tokenizer_files]
    if file.suffix == ".json":
        return saved_tokenizer(file, data["end_id"], context)
    try:
        return sentencepiece_tokenizer(file, data["end_id"], context)
    except ValueError as error:
        raise InputError(f"{file}: cannot be made a fast tokenizer with the same ids: {error}") from error
