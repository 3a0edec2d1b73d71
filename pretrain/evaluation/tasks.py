"""The tasks a model can be set: those of this package by name, all others from lm-eval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console

from pretrain.console import Measure, show_progress
from pretrain.evaluation.choosing import text_tokenizer
from pretrain.evaluation.copy_task import run_copy
from pretrain.evaluation.harness import load_tasks, run_harness
from pretrain.evaluation.passkey import DEPTHS, PASSKEY, TRIALS, cell, filler_by_length, passkey_accuracy
from pretrain.evaluation.tables import passkey_table, task_table
from pretrain.exported_model import ExportedModel
from pretrain.trained_model import TrainedModel

COPY = "copy"

Metrics = dict[str, float]


def run_tasks(
    model: TrainedModel | ExportedModel,
    tasks: Sequence[str],
    console: Console,
    *,
    device: torch.device,
    batch: int,
    include_path: Path | None,
    limit: int | None,
) -> Iterator[tuple[str, Metrics]]:
    """Run the tasks and print their tables; yields the name and the metrics of each as soon as it is done.

    `include_path` is a folder of lm-eval's task files, `limit` the number of examples of a task: of "passkey", for each
    length and depth; of "copy", sequences.

    Raises `InputError` where a task is unknown or cannot be loaded, before any is run, or the model cannot do one.
    """
    others = [task for task in tasks if task not in (PASSKEY, COPY)]
    loaded = load_tasks(others, include_path) if others else {}
    if PASSKEY in tasks:
        yield PASSKEY, _passkey(model, console, device, limit or TRIALS, batch)
    if COPY in tasks:
        metrics = run_copy(model, console, device=device, batch=batch, limit=limit)
        console.print(task_table(COPY, metrics))
        yield COPY, metrics
    if loaded:
        harness = run_harness(model, loaded, console, limit=limit, batch=batch, device=device)
        for name, metrics in harness:
            console.print(task_table(name, metrics))
            yield name, metrics


def _passkey(
    model: TrainedModel | ExportedModel, console: Console, device: torch.device, trials: int, batch: int
) -> Metrics:
    tokenizer = text_tokenizer(model)
    filler = filler_by_length(tokenizer, model.architecture.max_seq_len)
    reader = model.model().to(device, model.dtype)
    examples = trials * len(DEPTHS) * len(filler)
    with show_progress(console, "passkeys", examples, Measure("texts", 1)) as advance:
        accuracy = passkey_accuracy(reader, tokenizer, device, filler, trials=trials, batch=batch, progress=advance)
    console.print(passkey_table(accuracy))
    cells = {cell(length, depth): share for length, of_length in accuracy.items() for depth, share in of_length.items()}
    return {"accuracy": sum(cells.values()) / len(cells), **cells}
