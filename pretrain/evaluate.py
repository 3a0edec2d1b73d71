"""Evaluate a model: how well it does on held-out data, and, where it continues text, what its long context is good for.

Takes a run or a checkpoint, which is scored on all of the run's validation data. A language model that continues text
may also be an exported folder or a name on the Hub, and is scored on any text and on tasks: every token of a text once,
behind as much context as the model can read. The reach ablation scores the same tokens with the same weights and
latents behind a shortened prefix, on windows spread evenly over the text. Results are printed, and kept in
evaluation.json, from where reports and model cards have them.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script has its own folder first, where `config` or `evaluate` would shadow other packages' modules.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import math
import os
from collections.abc import Sequence
from tempfile import TemporaryDirectory

import torch
from rich.console import Console

from pretrain.command_line import ArgumentParser
from pretrain.console import print_line
from pretrain.data import mixture_weights
from pretrain.errors import DONE, InputError, run_command
from pretrain.evaluation.choosing import choose_texts
from pretrain.evaluation.results import EVALUATION, Results, is_in_model, write_results
from pretrain.evaluation.scoring import Reading, TextScorer
from pretrain.evaluation.strided import perplexity
from pretrain.evaluation.tables import position_table, task_table, text_table
from pretrain.evaluation.tasks import run_tasks
from pretrain.evaluation.texts import Text
from pretrain.evaluation.validation_set import evaluate_validation
from pretrain.exported_model import ExportedModel, find_run_or_model
from pretrain.trained_model import TrainedModel
from pretrain.trained_run import TrainedRun

REACHES = (0.0, 0.25, 0.5, 1.0)
EXAMPLES = """\
  python pretrain/evaluate.py --checkpoint runs/demo
  python pretrain/evaluate.py --checkpoint runs/demo/checkpoints/step-00001000 --max-windows 256 --out step-1000.json
  python pretrain/evaluate.py --checkpoint exports/demo --data data/other book.txt --reach 0,1
  python pretrain/evaluate.py --checkpoint me/model --tasks passkey,lambada_openai --limit 100
  python pretrain/evaluate.py --checkpoint runs/flow data.validation.kind=sintel data.validation.dir=~/data/sintel
"""
TEXT_OPTIONS = ("data", "split", "stride", "reach", "max_windows", "ablation_windows", "tasks", "include_path", "limit")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, examples=EXAMPLES)
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="MODEL", help="a run, a checkpoint, an exported folder, or owner/name")
    add("overrides", nargs="*", metavar="data.key=value", help="validate on other data than the run did, see above")
    text = parser.add_argument_group("text that a language model continues (evaluated unless only --tasks are given)")
    add = text.add_argument
    add("--data", nargs="+", metavar="TEXT", help="prepared corpora and text files (default: what a run trains on)")
    add("--split", choices=("train", "validation"), default="validation", help="of corpora (default: %(default)s)")
    add("--stride", type=int, metavar="K", help="latents scored per window (default: all of them, as in training)")
    add("--reach", metavar="F,...", help="fractions of the prefix to leave; '' for no ablation (default: 0,0.25,0.5,1)")
    add("--max-windows", type=int, default=0, metavar="N", help="windows to score, spread evenly (default: 0, all)")
    add("--ablation-windows", type=int, default=128, metavar="N", help="... for the ablation; 0 is all (%(default)s)")
    task = parser.add_argument_group("tasks of such a model")
    add = task.add_argument
    add("--tasks", type=_names, default=[], metavar="T,...", help="passkey, copy, and tasks of lm-eval")
    add("--include-path", type=Path, metavar="DIR", help="lm-eval tasks of your own: a folder of YAML files")
    add("--limit", type=int, metavar="N", help="examples of each task; of passkey per length and depth (default: 10)")
    add = parser.add_argument
    add("--batch", type=int, metavar="N", help="examples per forward pass (default: of text 4 or, on a GPU, 16)")
    add("--out", type=Path, metavar="FILE", help="JSON of the results (default: evaluation.json of the run or folder)")
    arguments = parser.parse_args(argv)
    _check(arguments)
    given = [name for name in TEXT_OPTIONS if getattr(arguments, name) != parser.get_default(name)]
    arguments.text_options = [f"--{name.replace('_', '-')}" for name in given]
    return arguments


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _check(arguments: argparse.Namespace) -> None:
    for name, least in {"stride": 1, "batch": 1, "limit": 1, "max_windows": 0, "ablation_windows": 0}.items():
        if (value := getattr(arguments, name)) is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')}: must be at least {least}, not {value}")
    for name in ("limit", "include_path"):
        if getattr(arguments, name) is not None and not arguments.tasks:
            raise InputError(f"--{name.replace('_', '-')}: is for --tasks, which are missing")
    if (folder := arguments.include_path) is not None and not folder.is_dir():
        raise InputError(f"--include-path: {folder} is not a folder")


def main(argv: Sequence[str]) -> int:
    arguments = parse(argv)
    model = find_run_or_model(arguments.checkpoint)
    console = Console()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if isinstance(model, TrainedModel | ExportedModel):
        if arguments.overrides:
            raise InputError(f"{arguments.overrides[0]}: {model.name} continues text: name other text as --data")
        out = evaluate_language_model(model, arguments, console, device)
    else:
        out = evaluate_run(model, arguments, console, device)
    console.print(f"written to {out}")
    return DONE


def evaluate_run(run: TrainedRun, arguments: argparse.Namespace, console: Console, device: torch.device) -> Path:
    """Score a run of any other task on its validation data. Returns the file of the results."""
    if arguments.text_options:
        task = run.config.task
        raise InputError(f"{arguments.text_options[0]}: is for models that continue text, not for runs of task {task}")
    out = writable(arguments.out or run.run_dir / EVALUATION)
    name, measures = evaluate_validation(run, arguments.overrides, console, device=device, batch=arguments.batch)
    console.print(task_table(name, measures))
    keep_results(out, run, {"corpora": {}, "tasks": {name: measures}}, console)
    return out


def evaluate_language_model(
    model: TrainedModel | ExportedModel, arguments: argparse.Namespace, console: Console, device: torch.device
) -> Path:
    """Score a Perceiver AR on text and tasks. Returns the file of the results."""
    reaches = parse_reaches(arguments.reach, model)
    latents = model.architecture.max_latents
    if arguments.stride is not None and arguments.stride > latents:
        raise InputError(f"--stride: {arguments.stride} is more than the model's max_latents ({latents})")
    batch = arguments.batch or (16 if device.type == "cuda" else 4)
    with TemporaryDirectory() as scratch:
        texts: dict[str, Text] = {}
        if arguments.data or not arguments.tasks:
            texts = choose_texts(model, arguments.data, arguments.split, Path(scratch))
        out = results_file(arguments, model, texts)
        # Whether a task can be done shows when it is begun: not after hours of text.
        if arguments.tasks:
            options = {"include_path": arguments.include_path, "limit": arguments.limit}
            for task, metrics in run_tasks(model, arguments.tasks, console, device=device, batch=batch, **options):
                keep_results(out, model, {"corpora": {}, "tasks": {task: metrics}}, console)
        if texts:
            reading = Reading(
                stride=arguments.stride or latents,
                batch=batch,
                windows=arguments.max_windows,
                ablation_windows=arguments.ablation_windows,
                reaches=reaches,
            )
            weights = None
            if arguments.data is None and isinstance(model, TrainedModel):
                weights = mixture_weights(model.config, model.state["step"])
            scores = score_texts(TextScorer(model, device, reading, console), texts, weights, console)
            keep_results(out, model, {**scores, "tasks": {}}, console)
    return out


def parse_reaches(text: str | None, model: TrainedModel | ExportedModel) -> Sequence[float]:
    """Fractions, ascending, each once, with 0: what gains are measured against. None without a prefix to cut.

    Raises `InputError` where they are none.
    """
    config = model.architecture
    if config.max_seq_len == config.max_latents:
        if text:
            raise InputError("--reach: the model has no prefix to cut, its max_latents is its max_seq_len")
        return ()
    if text is None:
        return REACHES
    try:
        reaches = sorted({0.0, *map(float, text.split(","))}) if text else []
    except ValueError:
        raise InputError(f"--reach: {text!r} is not a list of fractions such as 0,0.5,1") from None
    if not all(0 <= reach <= 1 for reach in reaches):
        raise InputError(f"--reach: fractions lie between 0 and 1, {text!r} has others")
    return reaches


def results_file(arguments: argparse.Namespace, model: TrainedModel | ExportedModel, texts: dict[str, Text]) -> Path:
    """Where the results go: to the run or the exported folder, of a model of the Hub to the current folder.

    Raises `InputError` where no file can be written there.
    """
    if arguments.out is not None:
        out = arguments.out
    elif isinstance(model, TrainedModel):
        # Other text than the run's own must not pass for it in the report and the model card.
        name = EVALUATION if arguments.data is None else f"evaluation-{next(iter(texts))}.json"
        out = model.run_dir / name
    elif Path(arguments.checkpoint).is_dir():
        out = model.folder / EVALUATION
    else:
        out = Path(f"evaluation-{model.name.replace('/', '--')}.json")
    return writable(out)


def writable(out: Path) -> Path:
    """`out`; raises `InputError` where no file can be written there."""
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise InputError(f"--out: {out.parent} is not a folder that can be written to")
    return out


def score_texts(
    score: TextScorer, texts: dict[str, Text], weights: dict[str, float] | None, console: Console
) -> Results:
    """Each text's results, and those of all together: by their weights in training, else as one text."""
    corpora = {}
    for name, text in texts.items():
        corpora[name] = score(text)
        split = "" if text.split is None else f", {text.split} text"
        console.print(text_table(f"{name}{split}", corpora[name]), position_table(corpora[name]))
    if weights is None:
        sizes = {name: len(text.stream) - 1 for name, text in texts.items()}
        weights = {name: size / sum(sizes.values()) for name, size in sizes.items()}
    loss = sum(weight * corpora[name]["loss"] for name, weight in weights.items())
    bytes_per_token = sum(weight / texts[name].tokens_per_byte for name, weight in weights.items())
    bits_per_byte = loss / math.log(2) / bytes_per_token
    if len(corpora) > 1:
        console.print(f"together: {bits_per_byte:.4f} bits per byte")
    return {
        "split": next((text.split for text in texts.values() if text.split), None),
        "tokens": sum(result["tokens"] for result in corpora.values()),
        "loss": loss,
        "accuracy": sum(weight * corpora[name]["accuracy"] for name, weight in weights.items()),
        "perplexity": perplexity(loss),
        "bits_per_byte": bits_per_byte,
        "corpora": corpora,
    }


def keep_results(out: Path, model: TrainedRun | ExportedModel, measured: Results, console: Console) -> None:
    """Into the file, and into the card of an exported folder if the file lies there."""
    results, outdone = write_results(out, model, measured)
    if outdone:
        print_line(
            console, f"{', '.join(outdone)}: results of the whole text are there and stay; --out keeps a sample's"
        )
    if is_in_model(out, model):
        from pretrain.model_card import update_evaluation

        update_evaluation(out.parent, results)


if __name__ == "__main__":
    run_command(main)
