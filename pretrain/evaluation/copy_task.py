"""The copy task set to a trained model: how many of the copied tokens it knows, each behind the true ones before it."""

from __future__ import annotations

from typing import get_args

import torch
from rich.console import Console

from pretrain.console import Measure, show_progress
from pretrain.corpus.copying import CopyOrder, CopyStrips, CopyTask
from pretrain.corpus.tokenizers import ByteTokenizer
from pretrain.errors import InputError
from pretrain.evaluation.strided import evaluate_windows
from pretrain.exported_model import ExportedModel
from pretrain.tasks.causal_lm.objective import CausalLM
from pretrain.trained_model import TrainedModel

SEQUENCES = 12
"""At least; the paper has as many."""
TOKENS = 1 << 13
"""At least, of all sequences."""
WINDOWS = Measure("windows", 1)


def copy_tasks(model: TrainedModel | ExportedModel) -> list[CopyTask]:
    """The task a run was trained on; of other models, both orders, as long as their context.

    Raises `InputError` where the model has too few tokens or too short a context.
    """
    if isinstance(model, TrainedModel) and model.config.data.copy_task is not None:
        return [model.config.data.copy_task]
    config = model.architecture
    if config.vocab_size < ByteTokenizer.vocab_size or config.max_seq_len < 3:
        raise InputError(
            f"--tasks copy: needs a vocabulary of {ByteTokenizer.vocab_size} and a context of 3 tokens at least, the "
            f"model has {config.vocab_size} and {config.max_seq_len}"
        )
    return [CopyTask(length=(config.max_seq_len + 1) // 2 * 2, order=order) for order in get_args(CopyOrder)]


def run_copy(
    model: TrainedModel | ExportedModel, console: Console, *, device: torch.device, batch: int, limit: int | None
) -> dict[str, float]:
    """Accuracy, and nats per token, of each task on its first `limit` validation sequences.

    Raises `InputError` as `copy_tasks`.
    """
    tasks, config = copy_tasks(model), model.architecture
    scorer = CausalLM(model.model(), seed=0).to(device, model.dtype).eval()
    metrics: dict[str, float] = {}
    for task in tasks:
        sequences = limit or max(SEQUENCES, TOKENS // task.length)
        windows = CopyStrips(task, sequences, context=config.max_seq_len, latents=config.max_latents)
        with show_progress(console, f"copies, {task.order}", len(windows), WINDOWS) as advance:
            result = evaluate_windows(
                scorer, windows, batch=batch, tokens_per_byte=1.0, device=device, progress=advance
            )
        described = f"{task.length} tokens, {task.order}"
        metrics |= {f"accuracy, {described}": result.accuracy, f"loss, {described}": result.loss}
    return metrics
