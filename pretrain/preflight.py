"""What must hold before a run starts, beyond its YAML file: number of ranks, data, run folder.

Nothing is created, save that manifests of remote corpora get into the shard cache.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pretrain.config import CONFIG_FILE, RunConfig, load_config
from pretrain.corpus import Windows
from pretrain.corpus.direct.config import StreamConfig
from pretrain.corpus.samples import rows_of_rank
from pretrain.corpus.tokenizers import load_tokenizer
from pretrain.data import PreparedData, corpus_locations, open_corpora
from pretrain.distributed.attempt import WORKER
from pretrain.errors import InputError, Unavailable
from pretrain.initial_model import InitialModel, open_initial_model

MAY_CHANGE = (
    "run.dir",
    "data.corpus",  # may move; the checkpoint holds the fingerprint of its tokens
    "data.mixture.*.corpus",
    "data.mixture.*.max_epochs",
    "data.tokenizer",
    "data.cache",
    "data.read_ahead",
    "train.steps",
    "train.micro_batch",
    "train.zero",
    "train.activation_checkpointing",
    "train.attention",
    "train.compile",
    "evaluation",
    "checkpoint",
    "stability",
    "watchdog",
    "logging",
    "hub",
)
"""Fields, with all below them, that a run may go on with other values of: they do not decide what it computes."""


def check_run(config: RunConfig, world_size: int) -> None:
    """Refuse a run of `world_size` ranks that could not start, or would continue another one.

    Raises:
        InputError: One line that lists all problems.
        Unavailable: A server or the folder of a run that has begun cannot be reached now.
    """
    problems = [
        *_batch_problems(config, world_size),
        *_data_problems(config, world_size),
        *_initial_model_problems(config),
        *_folder_problems(config),
    ]
    if problems:
        raise InputError("; ".join(problems))


def doubts(config: RunConfig) -> Iterator[str]:
    """What may be a mistake in a configuration that `check_run` lets pass, one line each."""
    initial = _initial_model(config)
    if initial is None or initial.tokenizer_hash is not None:
        return
    ids = initial.architecture.vocab_size
    for origin, vocab_size in _vocabularies(config):
        if vocab_size != ids:
            yield (
                f"model.init_from: {initial.name} has {ids} ids and does not tell its tokenizer, that of {origin} has "
                f"{vocab_size}: make sure that both mean the same tokens"
            )


def _vocabularies(config: RunConfig) -> Iterator[tuple[str, int]]:
    """Of all that is trained on: where it is, and the size of its tokenizer's vocabulary."""
    if (stream := config.data.stream) is not None:
        yield stream.dataset, load_tokenizer(stream.tokenizer, stream.end_token).vocab_size
        return
    for name, corpus in open_corpora(config).items():
        yield corpus_locations(config)[name][1], corpus.manifest.vocab_size


def _batch_problems(config: RunConfig, world_size: int) -> Iterator[str]:
    try:
        rows_of_rank(config.train.global_batch, config.train.micro_batch, 0, world_size)
    except InputError as error:
        yield str(error)


def _data_problems(config: RunConfig, world_size: int) -> Iterator[str]:
    if config.data.stream is not None:
        yield from _stream_problems(config, config.data.stream, world_size)
        return
    try:
        data = PreparedData(config)
    except Unavailable:
        raise
    except InputError as error:
        yield str(error)
        return
    for part in data.samples.parts:
        field, location = corpus_locations(config)[part.name]
        manifest = data.corpora[part.name].manifest
        yield from _tokenizer_problems(
            config, manifest.tokenizer, manifest.tokenizer_hash, manifest.vocab_size, location
        )
        yield from _size_problems(config, field, location, manifest.splits["train"].tokens, part.windows)
    yield from _mixture_problems(config, data)


def _stream_problems(config: RunConfig, stream: StreamConfig, world_size: int) -> Iterator[str]:
    try:
        stream.check_division(config.train.global_batch, world_size)
    except InputError as error:
        yield str(error)
    try:
        tokenizer = load_tokenizer(stream.tokenizer, stream.end_token)
    except InputError as error:
        yield f"data.stream.{error}"
    else:
        yield from _tokenizer_problems(config, tokenizer.name, tokenizer.hash, tokenizer.vocab_size, stream.dataset)


def _initial_model_problems(config: RunConfig) -> Iterator[str]:
    if (initial := _initial_model(config)) is not None:
        yield from initial.misfits(config.model.architecture)


def _initial_model(config: RunConfig) -> InitialModel | None:
    """What a run starts from that has not begun."""
    name = config.model.init_from
    return None if name is None or _has_begun(config.run.dir) else open_initial_model(name)


def _size_problems(config: RunConfig, field: str, location: str, tokens: int, windows: Windows) -> Iterator[str]:
    model = config.model
    if config.data.windows != "crop" and tokens <= model.max_seq_len:
        yield (
            f"{field}: the train split of {location} has {tokens} tokens, one window needs "
            f"model.max_seq_len + 1 = {model.max_seq_len + 1}: add text, or lower model.max_seq_len"
        )
    elif config.data.mixture is None and len(windows) < config.train.global_batch:
        yield (
            f"train.global_batch: {config.train.global_batch} is more than the {len(windows)} windows of the train "
            f"split of {location}: add text, or lower train.global_batch"
        )


def _tokenizer_problems(
    config: RunConfig, tokenizer: str, tokenizer_hash: str, vocab_size: int, origin: str
) -> Iterator[str]:
    if config.data.tokenizer not in (None, tokenizer):
        yield (
            f"data.tokenizer: is {config.data.tokenizer}, but the tokens of {origin} are those of {tokenizer}: "
            "set data.tokenizer to that, or use other data"
        )
    if vocab_size > config.model.vocab_size:
        yield (
            f"model.vocab_size: {config.model.vocab_size} is too small for the tokens of {origin}, "
            f"it must be at least {vocab_size}"
        )
    initial = _initial_model(config)
    if initial is not None and initial.tokenizer_hash not in (None, tokenizer_hash):
        yield (
            f"model.init_from: {initial.name} was trained on tokens of {initial.tokenizer}, those of {origin} are of "
            f"{tokenizer} ({tokenizer_hash}, not {initial.tokenizer_hash}): prepare the data with the model's tokenizer"
        )


def _mixture_problems(config: RunConfig, data: PreparedData) -> Iterator[str]:
    epochs = data.samples.epochs(config.train.steps * config.train.global_batch)
    for name, part in (config.data.mixture or {}).items():
        if (last := max(part.weight)) >= config.train.steps:
            yield (
                f"data.mixture.{name}.weight: step {last} is never reached, train.steps is {config.train.steps}: "
                "leave it out, or train longer"
            )
        if part.max_epochs is not None and epochs[name] > part.max_epochs:
            yield (
                f"data.mixture.{name}.max_epochs: {config.train.steps} steps would read {part.corpus} "
                f"{epochs[name]:.2f} times, not at most {part.max_epochs:g}: lower its weight or train.steps"
            )


def _folder_problems(config: RunConfig) -> Iterator[str]:
    folder = config.run.dir
    try:
        parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        # Permission bits do not tell: root passes them, read-only and special file systems ignore them.
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        problem = f"run.dir: {folder} cannot be written ({error.strerror}), choose another run.dir"
        if WORKER in os.environ or _has_begun(folder):
            raise Unavailable(problem) from error
        yield problem
        return
    if (other := other_run(config)) is not None:
        yield other


def _has_begun(folder: Path) -> bool:
    """Whether a run has used the folder before, so that it was no mistake to name it."""
    try:
        return (folder / CONFIG_FILE).exists()
    except OSError as error:
        return error.errno in (errno.EIO, errno.ESTALE)  # a file system whose server is gone


def other_run(config: RunConfig) -> str | None:
    """What is wrong with going on with the run in `run.dir`, if it holds one."""
    folder = config.run.dir
    if not (folder / CONFIG_FILE).exists():
        return None
    try:
        earlier = load_config(folder / CONFIG_FILE)
    except InputError as error:
        return f"run.dir: {folder} holds a run of which {CONFIG_FILE} cannot be used ({error}), choose another run.dir"
    if changed := list(_changes(earlier.model_dump(mode="json"), config.model_dump(mode="json"))):
        return f"run.dir: {folder} holds another run ({', '.join(changed)}): choose another run.dir"
    return None


def _changes(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> Iterator[str]:
    if list(before) != list(after):
        yield f"{prefix.rstrip('.')} had {', '.join(map(str, before))}, now {', '.join(map(str, after))}"
        return
    for key in before:
        name, old, new = prefix + key, before[key], after[key]
        if any(fnmatch(name, pattern) for pattern in MAY_CHANGE):
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _changes(old, new, f"{name}.")  # also of equal ones: the order of a mixture's parts matters
        elif old != new:
            yield f"{name} was {old}, now {new}"
