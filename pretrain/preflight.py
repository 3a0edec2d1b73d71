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
from pretrain.corpus.samples import rows_of_rank
from pretrain.distributed.attempt import WORKER
from pretrain.errors import InputError, Unavailable
from pretrain.tasks import open_task

MAY_CHANGE = (
    "run.dir",
    "data.corpus",  # may move, as folders may; the checkpoint holds the fingerprints of what is in them
    "data.mixture.*.corpus",
    "data.mixture.*.max_epochs",
    "data.folder",
    "data.*.dir",
    "data.*.pictures",
    "data.tokenizer",
    "data.cache",
    "data.read_ahead",
    "data.threads",
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
        *open_task(config).problems(world_size),
        *_folder_problems(config),
    ]
    if problems:
        raise InputError("; ".join(problems))


def _batch_problems(config: RunConfig, world_size: int) -> Iterator[str]:
    try:
        rows_of_rank(config.train.global_batch, config.train.micro_batch, 0, world_size)
    except InputError as error:
        yield str(error)


def _folder_problems(config: RunConfig) -> Iterator[str]:
    folder = config.run.dir
    try:
        parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        # Permission bits do not tell: root passes them, read-only and special file systems ignore them.
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        problem = f"run.dir: {folder} cannot be written ({error.strerror}), choose another run.dir"
        if WORKER in os.environ or has_begun(folder):
            raise Unavailable(problem) from error
        yield problem
        return
    if (other := other_run(config)) is not None:
        yield other


def has_begun(folder: Path) -> bool:
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
