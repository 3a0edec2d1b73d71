"""Evaluate a checkpoint: bits per byte and perplexity of text it has not seen, and what the prefix contributes.

Every token of the split is scored once, with full context before it. The reach ablation scores the same tokens with
the same weights and latents behind a shortened prefix, on windows spread evenly over the split.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script has its own folder first, where `config` or `evaluate` would shadow other packages' modules.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import json
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from perceiver_ar.models.perceiver_ar import PerceiverARConfig
from pretrain.command_line import ArgumentParser
from pretrain.console import KILOTOKENS, show_progress
from pretrain.corpus import Corpus, open_corpus
from pretrain.data import mixture_weights, shard_cache, tokens_per_byte
from pretrain.errors import DONE, InputError, run_command
from pretrain.evaluation import EvaluationResult, evaluate_stream, perplexity
from pretrain.files import replace_text
from pretrain.tasks.causal_lm import CausalLM
from pretrain.trained_model import TrainedModel

EXAMPLES = """\
  python pretrain/evaluate.py --checkpoint runs/demo
  python pretrain/evaluate.py --checkpoint runs/demo/checkpoints/step-00001000 --max-windows 256 --out step-1000.json
  python pretrain/evaluate.py --checkpoint runs/demo --data data/other --reach 0,1 --ablation-windows 0
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, examples=EXAMPLES)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="DIR", help="a run directory or one of its checkpoints")
    add("--data", metavar="CORPUS", help="a prepared corpus, folder or URL (default: the run's own, each of a mixture)")
    add("--split", choices=("train", "validation"), default="validation")
    add("--stride", type=int, metavar="K", help="latents scored per window (default: all of them, as in training)")
    add("--reach", default="0,0.25,0.5,1", metavar="F,...", help="fractions of the prefix to leave; '' for no ablation")
    add("--max-windows", type=int, default=0, metavar="N", help="windows to score, spread evenly (default: 0, all)")
    add("--ablation-windows", type=int, default=128, metavar="N", help="... for the ablation; 0 is all (%(default)s)")
    add("--batch", type=int, metavar="N", help="windows per forward pass (default: 4 on CPU, 16 on a GPU)")
    add("--out", type=Path, metavar="FILE", help="JSON of the results (default: evaluation[-CORPUS].json in the run)")
    arguments = parser.parse_args(argv)
    for name, least in {"stride": 1, "batch": 1, "max_windows": 0, "ablation_windows": 0}.items():
        if (value := getattr(arguments, name)) is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')}: must be at least {least}, not {value}")
    arguments.reach = parse_reaches(arguments.reach)
    return arguments


def parse_reaches(text: str) -> list[float]:
    """Fractions, ascending, each once, with 0: what gains are measured against."""
    try:
        reaches = sorted({0.0, *map(float, text.split(","))}) if text else []
    except ValueError:
        raise InputError(f"--reach: {text!r} is not a list of fractions such as 0,0.5,1") from None
    if not all(0 <= reach <= 1 for reach in reaches):
        raise InputError(f"--reach: fractions lie between 0 and 1, {text!r} has others")
    return reaches


def main(argv: Sequence[str]) -> int:
    arguments = parse(argv)
    trained = TrainedModel.find(arguments.checkpoint)
    if arguments.data is None:
        corpora = trained.corpora()
    else:
        corpora = {Path(arguments.data).name: open_corpus(arguments.data, shard_cache(trained.config, arguments.data))}
    for corpus in corpora.values():
        check_corpus(corpus, arguments.split, trained)
    latents = trained.config.model.max_latents
    if arguments.stride is not None and arguments.stride > latents:
        raise InputError(f"--stride: {arguments.stride} is more than the model's max_latents ({latents})")
    # Other text than the run's own must not pass for it in the report and the model card.
    name = "evaluation.json" if arguments.data is None else f"evaluation-{next(iter(corpora))}.json"
    out = arguments.out or trained.run_dir / name
    if not out.parent.is_dir():
        raise InputError(f"--out: {out.parent} is not a folder")

    console = Console()
    of_corpora = {}
    for name, corpus in corpora.items():
        of_corpora[name] = {
            "location": corpus.location,
            **score_split(trained, corpus, arguments, console),
            "baselines": baselines(corpus, arguments.split),
        }
        console.print(summary(f"{name}, {arguments.split} text, step {trained.state['step']:,}", of_corpora[name]))
    weights = dict.fromkeys(corpora, 1.0) if arguments.data else mixture_weights(trained.config, trained.state["step"])
    results = {
        "checkpoint": trained.checkpoint.name,
        "step": trained.state["step"],
        "trained_tokens": trained.state["trained_tokens"],
        "split": arguments.split,
        **mixed(of_corpora, corpora, arguments.split, weights),
        "corpora": of_corpora,
    }
    if len(corpora) > 1:
        console.print(f"mixed as in training: {results['bits_per_byte']:.4f} bits per byte")
    replace_text(out, json.dumps(results, indent=1) + "\n")
    console.print(f"written to {out}")
    return DONE


def check_corpus(corpus: Corpus, split: str, trained: TrainedModel) -> None:
    """Raises `InputError` where the corpus holds other tokens than the model was trained on, or no such split."""
    trained_on, found = trained.state["data"], corpus.manifest.tokenizer_hash
    if trained_on["tokenizer_hash"] != found:
        raise InputError(
            f"{corpus.location}: prepared with tokenizer {corpus.manifest.tokenizer} ({found}); the model needs "
            f"{trained_on['tokenizer']} ({trained_on['tokenizer_hash']})"
        )
    if split not in corpus.manifest.splits:
        raise InputError(f"--split: {corpus.location} has no {split} text, only {', '.join(corpus.manifest.splits)}")


def mixed(
    results: dict[str, dict[str, Any]], corpora: dict[str, Corpus], split: str, weights: dict[str, float]
) -> dict[str, float]:
    """Loss, perplexity and bits per byte over corpora, each weighing as much as in training."""
    loss = sum(weight * results[name]["loss"] for name, weight in weights.items())
    per_byte = tokens_per_byte(corpora, split, weights)
    return {
        "tokens": sum(result["tokens"] for result in results.values()),
        "loss": loss,
        "perplexity": perplexity(loss),
        "bits_per_byte": loss / math.log(2) * per_byte,
    }


def score_split(
    trained: TrainedModel, corpus: Corpus, arguments: argparse.Namespace, console: Console
) -> dict[str, Any]:
    """Full pass, then the ablation: what `evaluation.json` holds about them. Losses are nats per token."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = CausalLM(trained.model(), trained.config.run.seed).to(device, trained.dtype).eval()
    config = trained.config.model
    stream, split = corpus.split(arguments.split), corpus.manifest.splits[arguments.split]
    stride = arguments.stride or config.max_latents
    windows = -(-(len(stream) - 1) // stride)
    covered = min(windows, arguments.max_windows or windows)
    ablated = min(covered, arguments.ablation_windows or covered)
    evaluate = partial(
        evaluate_stream,
        lambda batch: task(batch).nll,
        stream,
        context=config.max_seq_len,
        latents=config.max_latents,
        stride=stride,
        batch=arguments.batch or (16 if device.type == "cuda" else 4),
        segments=trained.config.data.within_documents,
        tokens_per_byte=split.tokens / split.bytes,
        device=device,
    )

    def scored(label: str, windows: int, reach: int | None) -> EvaluationResult:
        with show_progress(console, label, windows * stride, KILOTOKENS) as advance:
            return evaluate(max_windows=windows, reach=reach, progress=lambda windows: advance(windows * stride))

    full = scored("whole prefix", covered, None)
    ablation = {}
    for reach in arguments.reach:
        whole = reach == 1 and ablated == covered
        ablation[reach] = full if whole else scored(f"reach {reach:g}", ablated, prefix_tokens(config, reach))
    return {
        **numbers(full),
        "context": config.max_seq_len,
        "latents": config.max_latents,
        "stride": stride,
        "windows": covered,
        "windows_of_split": windows,
        "loss_by_position": full.loss_by_position,
        "ablation_windows": ablated,
        "ablation": [
            {"reach": reach, "prefix_tokens": prefix_tokens(config, reach), **numbers(result)}
            | {"gain": ablation[0.0].bits_per_byte - result.bits_per_byte}
            for reach, result in ablation.items()
        ],
    }


def prefix_tokens(config: PerceiverARConfig, reach: float) -> int:
    """How many tokens a fraction of the longest prefix is."""
    return round(reach * (config.max_seq_len - config.max_latents))


def numbers(result: EvaluationResult) -> dict[str, float]:
    names = ("tokens", "loss", "perplexity", "bits_per_byte", "tokens_per_second")
    return {name: getattr(result, name) for name in names}


def baselines(corpus: Corpus, split: str) -> dict[str, float] | None:
    measured = corpus.manifest.splits[split].baselines
    return None if measured is None else {"order_0": measured.order_0, "order_2": measured.order_2, "xz": measured.xz}


def summary(title: str, results: dict[str, Any]) -> Table:
    """The results of one corpus beside each other, as in `evaluation.json`."""
    table = Table(title=title, title_justify="left")
    table.add_column(no_wrap=True)
    for heading in ("bits per byte", "perplexity", "prefix gain", "tokens/s"):
        table.add_column(heading, justify="right")

    def add(label: str, row: dict[str, Any], gain: str = "") -> None:
        rate = f"{row['tokens_per_second']:,.0f}"
        table.add_row(label, f"{row['bits_per_byte']:.4f}", f"{row['perplexity']:.3f}", gain, rate)

    whole = results["windows"] == results["windows_of_split"]
    add(f"{'all' if whole else 'a sample of'} {results['tokens']:,} tokens", results)
    if results["ablation"]:
        table.add_section()
        spread = "" if results["ablation_windows"] == results["windows"] else ", evenly spread"
        table.add_row(f"{results['ablation'][0]['tokens']:,} tokens{spread}")
    for row in results["ablation"]:
        label = f"  prefix cut to {row['prefix_tokens']:,} tokens" if row["reach"] < 1 else "  whole prefix"
        add(label, row, f"{row['gain']:+.4f}" if row["reach"] else "")
    if results["baselines"]:
        table.add_section()
        for name, label in {"order_0": "order-0 entropy", "order_2": "order-2 entropy", "xz": "xz -6"}.items():
            table.add_row(label, f"{results['baselines'][name]:.4f}")
    return table


if __name__ == "__main__":
    run_command(main)
