"""A trained model as a Hugging Face model, and as the folder that holds one."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import GenerationConfig, PreTrainedTokenizerFast

from perceiver_ar.hf import PerceiverARForCausalLM, PerceiverARHFConfig
from perceiver_ar.hf.remote_code import AUTO_MAP, remote_code
from perceiver_ar.hf.tokenization import byte_tokenizer, saved_tokenizer, sentencepiece_tokenizer
from pretrain.checkpoint import CheckpointReader
from pretrain.console import MEGABYTES, Advance, show_progress
from pretrain.corpus import Corpus
from pretrain.corpus.tokenizers import BYTES
from pretrain.errors import InputError
from pretrain.model_card import write_card
from pretrain.trained_model import DTYPES, TrainedModel

SHARD_BYTES = 5 * 10**9
TRAINING = "training.json"
WRAPPED = "model."
"""What the names of a Hugging Face model's weights begin with; the rest is their name in `PerceiverAR`."""


def export(
    trained: TrainedModel,
    corpora: dict[str, Corpus],
    out: Path,
    *,
    name: str,
    loaded_as: str,
    dtype: str = "fp32",
    max_shard_size: int = SHARD_BYTES,
    with_code: bool = False,
    console: Console,
) -> None:
    """Write the folder whole, in place of an earlier one, or not at all.

    `name` is the model's in its card, `loaded_as` what readers of the card give to transformers; `dtype` is a key of
    `DTYPES`; a file of weights has at most `max_shard_size` bytes, or one tensor, and no more than such a file is ever
    in memory. `with_code` adds the model's source. The same checkpoint, results and options give the same bytes.

    Raises `InputError` where the disk refuses, or the tokenizer has no exact fast counterpart.
    """
    out = out.resolve()  # a link keeps pointing to it
    temporary, old = (out.with_name(f".{kind}-{out.name}") for kind in ("tmp", "old"))
    try:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write_tokenizer(hf_tokenizer(trained, next(iter(corpora.values()))), temporary)
        _write_configuration(trained, temporary, dtype, with_code)
        write_card(temporary, name, trained, corpora, loaded_as=loaded_as, with_code=with_code)
        _write_weights(trained, temporary, DTYPES[dtype], max_shard_size, console)
        if out.exists():
            os.rename(out, old)
        os.rename(temporary, out)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{out}: is not written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def hf_model(trained: TrainedModel, dtype: torch.dtype = torch.float32) -> PerceiverARForCausalLM:
    """The checkpoint as a Hugging Face model, in evaluation mode."""
    with torch.device("meta"):
        wrapped = PerceiverARForCausalLM(PerceiverARHFConfig(**dataclasses.asdict(trained.architecture)))
    wrapped.model = trained.model()
    wrapped.to(dtype)  # type: ignore[arg-type]
    wrapped.generation_config = _generation_config(trained)
    return wrapped.eval()


def hf_tokenizer(trained: TrainedModel, corpus: Corpus | None = None) -> PreTrainedTokenizerFast:
    """The fast tokenizer with the ids the model was trained on; `corpus` if it is not where the run had it.

    Raises `InputError` where the run's tokenizer has no exact fast counterpart.
    """
    context, data = trained.architecture.max_seq_len, trained.state["data"]
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


def training_record(trained: TrainedModel) -> dict[str, Any]:
    """``training.json``: what programs that open the folder want to know of the training."""
    data = trained.state["data"]
    return {
        "run": trained.run_dir.name,
        "step": trained.state["step"],
        "trained_tokens": trained.state["trained_tokens"],
        "precision": trained.config.train.precision,
        "within_documents": trained.within_documents,
        "end_id": trained.end_id,
        "tokenizer": data["tokenizer"],
        "tokenizer_hash": data["tokenizer_hash"],
        "fingerprints": data["fingerprints"],
    }


def _generation_config(trained: TrainedModel) -> GenerationConfig:
    # A document begins behind the end of another: that is what the model has seen before every first token.
    end = trained.end_id
    return GenerationConfig(bos_token_id=end, eos_token_id=end, pad_token_id=end)


def _write_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # no class of its own is raised where the disk refuses
        raise OSError(str(error)) from error


def _write_configuration(trained: TrainedModel, folder: Path, dtype: str, with_code: bool) -> None:
    config = PerceiverARHFConfig(**dataclasses.asdict(trained.architecture))
    config.architectures = [PerceiverARForCausalLM.__name__]
    config.dtype = DTYPES[dtype]
    if with_code:
        config.auto_map = AUTO_MAP
        for name, source in remote_code().items():
            (folder / name).write_text(source)
    config.save_pretrained(folder)
    _generation_config(trained).save_pretrained(folder)
    (folder / TRAINING).write_text(json.dumps(training_record(trained), indent=1) + "\n")


def _write_weights(
    trained: TrainedModel, folder: Path, dtype: torch.dtype, max_shard_size: int, console: Console
) -> None:
    shapes = {WRAPPED + name: shape for name, shape in trained.state["shapes"].items()}
    tensors = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}
    plan = split_torch_state_dict_into_shards(tensors, max_shard_size=max_shard_size)
    with show_progress(console, "weights", plan.metadata["total_size"], MEGABYTES) as advance:
        for file, names in plan.filename_to_tensors.items():
            _write_shard(folder / file, names, trained.checkpoint, dtype, advance)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def _write_shard(path: Path, names: Sequence[str], checkpoint: Path, dtype: torch.dtype, advance: Advance) -> None:
    # A reader of its own: what one has read stays mapped into memory as long as it is open.
    reader = CheckpointReader(checkpoint)
    shard = {}
    for name in names:
        shard[name] = reader.whole("weight", name.removeprefix(WRAPPED)).to(dtype)
        advance(shard[name].nbytes)
    save_file(shard, path, metadata={"format": "pt"})
    # safetensors lets nobody else read its files: these are to be as open as the folder they lie in.
    path.chmod(path.parent.stat().st_mode & 0o666)
