"""A trained model as a Hugging Face model, and as the folder that holds one."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import BaseImageProcessor

from perceiver_ar.hf.auto import auto_classes
from perceiver_ar.hf.remote_code import auto_map, remote_code
from pretrain.checkpoint import CheckpointReader
from pretrain.console import MEGABYTES, Advance, show_progress
from pretrain.errors import InputError
from pretrain.model_card import write_card
from pretrain.release import Release
from pretrain.trained_run import DTYPES

SHARD_BYTES = 5 * 10**9
TRAINING = "training.json"
WRAPPED = "model."
"""What the names of a Hugging Face model's weights begin with; the rest is their name in the model that was trained."""


def export(
    release: Release,
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
        _write_configuration(release, temporary, dtype, with_code)
        write_card(temporary, name, release, loaded_as=loaded_as, with_code=with_code)
        _write_weights(release, temporary, DTYPES[dtype], max_shard_size, console)
        if out.exists():
            os.rename(out, old)
        os.rename(temporary, out)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{out}: is not written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def hf_model(release: Release, dtype: torch.dtype = torch.float32) -> Any:
    """The checkpoint as a Hugging Face model, in evaluation mode."""
    with torch.device("meta"):
        wrapped: Any = release.hf_class()(release.hf_config())
    wrapped.model = release.trained.model()
    wrapped.to(dtype)
    if (generation := release.generation_config()) is not None:
        wrapped.generation_config = generation
    return wrapped.eval()


def _write_configuration(release: Release, folder: Path, dtype: str, with_code: bool) -> None:
    """All that is not weights: configuration, processors, what programs want to know, and the source."""
    config, processors = release.hf_config(), release.processors()
    config.architectures = [release.hf_class().__name__]
    config.dtype = DTYPES[dtype]
    if with_code:
        classes = auto_classes(type(config))
        config.auto_map = auto_map(classes)
        images: list[Any] = [processor for processor in processors if isinstance(processor, BaseImageProcessor)]
        for processor in images:
            processor.auto_map = auto_map({"AutoImageProcessor": type(processor)})
        for name, source in remote_code([*classes.values(), *map(type, images)]).items():
            (folder / name).write_text(source)
    for part in (*processors, config, release.generation_config()):
        if part is not None:
            _save(part, folder)
    (folder / TRAINING).write_text(json.dumps(release.training_record(), indent=1) + "\n")


def _save(part: Any, folder: Path) -> None:
    try:
        part.save_pretrained(folder)
    except Exception as error:  # no class of its own is raised where the disk refuses
        raise OSError(str(error)) from error


def _write_weights(release: Release, folder: Path, dtype: torch.dtype, max_shard_size: int, console: Console) -> None:
    tensors = _tensors(release, dtype)
    plan = split_torch_state_dict_into_shards(tensors, max_shard_size=max_shard_size)
    with show_progress(console, "weights", plan.metadata["total_size"], MEGABYTES) as advance:
        for file, names in plan.filename_to_tensors.items():
            _write_shard(folder / file, {name: tensors[name] for name in names}, release.trained.checkpoint, advance)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def _tensors(release: Release, dtype: torch.dtype) -> dict[str, Tensor]:
    """On the meta device: what the files hold, by name."""
    saved = release.trained.state["shapes"]
    return {WRAPPED + name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in saved.items()}


def _write_shard(path: Path, tensors: dict[str, Tensor], checkpoint: Path, advance: Advance) -> None:
    # A reader of its own: what one has read stays mapped into memory as long as it is open.
    reader = CheckpointReader(checkpoint)
    shard = {}
    for name, like in tensors.items():
        shard[name] = reader.whole("weight", name.removeprefix(WRAPPED)).to(like.dtype)
        advance(shard[name].nbytes)
    save_file(shard, path, metadata={"format": "pt"})
    # safetensors lets nobody else read its files: these are to be as open as the folder they lie in.
    path.chmod(path.parent.stat().st_mode & 0o666)
