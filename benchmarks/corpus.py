"""Measure the data path: reading, planning, resuming and preparing, beside other ways to do the same, in one run."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script has its own folder first, where `corpus` or `step` would shadow other packages' modules.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import json
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.provenance import print_facts, provenance
from pretrain.command_line import ArgumentParser
from pretrain.errors import DONE, InputError, run_command

EXAMPLES = """\
  python benchmarks/corpus.py --json result.json
  python benchmarks/corpus.py --quick
"""
QUICK: dict[str, Any] = {"tokens": 3_000_000, "text_mb": 8, "turns": 1, "seconds": 0.3, "times": 3}
WHOLE: dict[str, Any] = {"tokens": 100_000_000, "text_mb": 200, "turns": 5, "seconds": 2.0, "times": 20}
PREPARING_TURNS = 2


def measure(tokens: int, text_mb: int, turns: int, seconds: float, times: int) -> dict[str, Any]:
    """Everything, in a temporary folder."""
    from benchmarks.corpus_preparing import measure_preparing  # they import libraries, which takes seconds
    from benchmarks.corpus_reading import measure_planning, measure_reading, measure_resume, prepare_reading

    with tempfile.TemporaryDirectory(prefix="corpus-benchmark-") as name:
        folder = Path(name)
        corpus = prepare_reading(folder, tokens)
        return {
            "reading": measure_reading(folder, corpus, turns, seconds),
            "planning": measure_planning(corpus, times),
            "resume": measure_resume(folder / "small-shards", times),
            "preparing": measure_preparing(folder, text_mb * 10**6, min(turns, PREPARING_TURNS)),
        }


def table_of(heading: str, unit: str, rows: dict[str, dict[str, float]], digits: int) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), title_justify="left")
    table.add_column(heading, min_width=48)
    for column in (unit, "lowest", "highest"):
        table.add_column(column, justify="right", min_width=10)
    for name, figures in rows.items():
        table.add_row(name, *(f"{figures[key]:,.{digits}f}" for key in ("median", "min", "max")))
    return table


def print_report(result: dict[str, Any]) -> None:
    """A table for each part and, below them, what they were measured on."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    preparing, resume = (
        {name: figures for name, figures in result[part].items() if isinstance(figures, dict)}
        for part in ("preparing", "resume")
    )
    planning = result["planning"].items()
    for table in (
        table_of("reading", "Mtoken/s", result["reading"], 1),
        table_of("planning in bulk", "µs/sample", {name: figures["bulk_us"] for name, figures in planning}, 3),
        table_of("planning 8 samples", "µs", {name: figures["call_us"] for name, figures in planning}, 0),
        table_of("seeking sample 10^10", "ms", {name: figures["seek_ms"] for name, figures in planning}, 1),
        table_of("first batch after resuming", "seconds", resume, 3),
        table_of("preparing", "MB/s", preparing, 1),
    ):
        console.print(table)
        console.print()
    raw, *bpe = list(preparing.items())[1:]
    facts = {
        **{f"{name} / raw": f"{figures['median'] / raw[1]['median']:.0%}" for name, figures in bpe},
        "corpus read": f"{result['tokens']:,} random uint16 tokens, context {result['context']}, "
        f"{result['latents']} latents, batch {result['batch']}; input tokens are counted",
        "resumed": f"batch {result['resume']['batch']} from {result['resume']['shards_of_a_batch']:.0f} of "
        f"{result['resume']['shards']} shards of {result['resume']['shard_mb']:.1f} MB each",
        "text prepared": f"{result['preparing']['text_mb']:,.0f} MB in {result['preparing']['documents']:,} files",
        **{name: result[name] for name in ("hardware", "software", "libraries", "commit", "command", "date")},
    }
    print_facts(console, facts, width=32)


def main(argv: Sequence[str]) -> int:
    parser = ArgumentParser(description=__doc__, examples=EXAMPLES)
    parser.add_argument("--tokens", type=int, metavar="N", help="to read (default: 100 million)")
    parser.add_argument("--text-mb", type=int, metavar="N", help="to prepare (default: 200)")
    parser.add_argument("--quick", action="store_true", help="small and rough, in about a minute: to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything to this file")
    arguments = parser.parse_args(argv)
    given = {name: value for name in ("tokens", "text_mb") if (value := getattr(arguments, name)) is not None}
    sizes = (QUICK if arguments.quick else WHOLE) | given
    if sizes["tokens"] < 1_000_000:
        raise InputError(f"--tokens: must be at least 1,000,000, not {sizes['tokens']:,}")
    if sizes["text_mb"] < 1:
        raise InputError(f"--text-mb: must be at least 1, not {sizes['text_mb']}")
    if arguments.json and not arguments.json.parent.is_dir():
        raise InputError(f"--json: {arguments.json.parent} is not a folder")
    from benchmarks.corpus_reading import BATCH, CONTEXT, LATENTS

    libraries = ", ".join(f"{name} {version(name)}" for name in ("numpy", "datasets", "tokenizers", "tiktoken"))
    result = provenance(torch.device("cpu"), ranks=1) | {
        "libraries": libraries,
        "context": CONTEXT,
        "latents": LATENTS,
        "batch": BATCH,
        **sizes,
        **measure(**sizes),
    }
    print_report(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return DONE


if __name__ == "__main__":
    run_command(main)
