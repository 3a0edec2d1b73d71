"""What must hold before a run starts, beyond its YAML file: number of ranks, corpus, run folder. Nothing is created."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

from pretrain.config import RunConfig, load_config
from pretrain.corpus import StridedWindows, TokenStream, open_corpus
from pretrain.errors import InputError

CONFIG_FILE = "config.yaml"
"""In the run folder: the resolved configuration the run was started with."""

MAY_CHANGE = (
    "run.dir",
    "data.corpus",  # may move; the checkpoint holds the fingerprint of its tokens
    "data.read_ahead",
    "train.steps",
    "train.micro_batch",
    "train.zero",
    "train.activation_checkpointing",
    "train.attention",
    "train.compile",
    "train.max_skipped_steps",
    "evaluation",
    "checkpoint",
    "logging",
)
"""Fields that a run may be continued with other values of: they do not decide what it computes."""


def check_run(config: RunConfig, world_size: int) -> None:
    """Refuse a run of `world_size` ranks that could not start, or would continue another one.

    Raises:
        InputError: One line that lists all problems.
    """
    problems = [*_batch_problems(config, world_size), *_corpus_problems(config), *_folder_problems(config)]
    if problems:
        raise InputError("; ".join(problems))


def windows_per_epoch(config: RunConfig, stream: TokenStream) -> int:
    """Training sequences in `stream`: each of its tokens but the first is a target once."""
    latents = config.model.max_latents
    return len(StridedWindows(stream, context=config.model.max_seq_len, latents=latents, stride=latents))


def _batch_problems(config: RunConfig, world_size: int) -> Iterator[str]:
    train = config.train
    if train.global_batch % (train.micro_batch * world_size):
        yield (
            f"train.global_batch: {train.global_batch} must be a multiple of "
            f"train.micro_batch ({train.micro_batch}) x ranks ({world_size}) = {train.micro_batch * world_size}"
        )


def _corpus_problems(config: RunConfig) -> Iterator[str]:
    model = config.model
    try:
        corpus = open_corpus(config.data.corpus)
    except InputError as error:
        yield f"data.corpus: {error}"
        return
    manifest = corpus.manifest
    if manifest.tokenizer != config.data.tokenizer:
        yield (
            f"data.tokenizer: is {config.data.tokenizer}, but the corpus {config.data.corpus} was prepared with "
            f"{manifest.tokenizer}: set data.tokenizer to that, or prepare another corpus"
        )
    if manifest.vocab_size > model.vocab_size:
        yield (
            f"model.vocab_size: {model.vocab_size} is too small for the tokens of {config.data.corpus}, "
            f"it must be at least {manifest.vocab_size}"
        )
    stream = corpus.split("train")
    if len(stream) <= model.max_seq_len:
        yield (
            f"data.corpus: the train split of {config.data.corpus} has {len(stream)} tokens, one window needs "
            f"model.max_seq_len + 1 = {model.max_seq_len + 1}: add text, or lower model.max_seq_len"
        )
        return
    windows = windows_per_epoch(config, stream)
    if windows < config.train.global_batch:
        yield (
            f"train.global_batch: {config.train.global_batch} is more than the {windows} windows of the train split of "
            f"{config.data.corpus}: add text, or lower train.global_batch"
        )


def _folder_problems(config: RunConfig) -> Iterator[str]:
    folder = config.run.dir
    try:
        parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        # Permission bits do not tell: root passes them, read-only and special file systems ignore them.
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        yield f"run.dir: {folder} cannot be written ({error.strerror}), choose another run.dir"
        return
    if not (folder / CONFIG_FILE).exists():
        return
    try:
        earlier = load_config(folder / CONFIG_FILE)
    except InputError as error:
        yield f"run.dir: {folder} holds a run of which {CONFIG_FILE} cannot be used ({error}), choose another run.dir"
        return
    if changed := list(_changes(earlier.model_dump(mode="json"), config.model_dump(mode="json"))):
        yield f"run.dir: {folder} holds another run ({', '.join(changed)}): choose another run.dir"


def _changes(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, old in before.items():
        name, new = prefix + key, after[key]
        if name in MAY_CHANGE or old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _changes(old, new, f"{name}.")
        else:
            yield f"{name} was {old}, now {new}"
