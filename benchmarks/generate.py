"""Measure decoding at perceiver-io's shape: tokens/s beside its concatenating cache, and ms a token by context."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script has its own folder first, where `generate` or `step` would shadow other packages' modules.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import json
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.provenance import print_facts, provenance
from pretrain.command_line import ArgumentParser
from pretrain.errors import DONE, InputError, run_command

EXAMPLES = """\
  python benchmarks/generate.py
  python benchmarks/generate.py --threads 8 --turns 9 --json result.json
"""
ARMS = {
    "dynamic": "generate()",
    "compiled": "generate(), static cache, compiled steps",
    "concatenating": "the plain way: a concatenating cache",
}
CONTEXTS = (2048, 4096, 8192, 16_384, 32_768, 65_536)


def print_report(result: dict[str, Any]) -> None:
    """Two tables and, below them, what they were measured on."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    rates = Table(box=None, padding=(0, 3, 0, 0))
    for heading in (f"median of {result['turns']} turns", "tokens/s", "slowest .. fastest"):
        rates.add_column(heading, justify="left" if heading.startswith("median") else "right")
    for name, label in ARMS.items():
        rate = result["tokens_per_second"][name]
        rates.add_row(label, f"{rate['median']:.1f}", f"{rate['min']:.1f} .. {rate['max']:.1f}")
    rates.add_row("perceiver-io's own, as recorded", f"{result['peer_tokens_per_second']:.1f}", "")
    contexts = Table(box=None, padding=(0, 3, 0, 0))
    for heading in ("context", "ms a token", "cross-attention", "the rest"):
        contexts.add_column(heading, justify="right")
    for row in result["contexts"]:
        milliseconds = (row[name] for name in ("step_ms", "cross_attention_ms", "rest_ms"))
        contexts.add_row(f"{row['context']:,}", *(f"{value:.2f}" for value in milliseconds))
    console.print(rates)
    console.print()
    console.print(contexts)
    facts = {
        "speed-up": "{dynamic:.2f}x the plain way, compiled {compiled:.2f}x".format(**result["over_concatenating"]),
        "decoding": f"{result['parameters']:,} parameters, prompt of {result['prompt']:,} tokens, {result['tokens']} "
        "new ones, greedy, batch 1, fp32",
        **{name: result[name] for name in ("hardware", "software", "commit", "command", "date")},
    }
    console.print()
    print_facts(console, facts)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, examples=EXAMPLES)
    add = parser.add_argument
    add("--threads", type=int, default=2, metavar="N", help="of the CPU (default: %(default)s)")
    add(
        "--tokens", type=int, default=256, metavar="N", help="new tokens in each turn, up to 512 (default: %(default)s)"
    )
    add("--turns", type=int, default=5, metavar="N", help="of each way (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="also write everything to this file")
    arguments = parser.parse_args(argv)
    for name, least, most in (("threads", 1, 1024), ("tokens", 2, 512), ("turns", 1, 1000)):
        if not least <= (value := getattr(arguments, name)) <= most:
            raise InputError(f"--{name}: must be from {least} to {most}, not {value}")
    if arguments.json and not arguments.json.parent.is_dir():
        raise InputError(f"--json: {arguments.json.parent} is not a folder")
    return arguments


def main(argv: Sequence[str]) -> int:
    arguments = parse(argv)
    from benchmarks.generate_timing import by_context, compare  # imports transformers, which takes seconds

    torch.set_num_threads(arguments.threads)
    result = provenance(torch.device("cpu"), 1) | compare(arguments.tokens, arguments.turns)
    result["contexts"] = by_context(CONTEXTS, min(64, arguments.tokens))
    print_report(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return DONE


if __name__ == "__main__":
    run_command(main)
