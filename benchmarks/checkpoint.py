"""Measure checkpoints: saving beside a plain copy of the same bytes, what training waits for, and loading."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script has its own folder first, where `checkpoint` or `step` would shadow other packages' modules.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.provenance import print_facts, provenance
from pretrain.command_line import ArgumentParser
from pretrain.config import WatchdogSection
from pretrain.distributed import join, leave
from pretrain.errors import DONE, InputError, run_command

EXAMPLES = """\
  torchrun --nproc-per-node 2 benchmarks/checkpoint.py --dir runs --json result.json
  torchrun --nproc-per-node 2 benchmarks/checkpoint.py --dir /scratch --gigabytes 8 --stage 3
"""
ROWS = {
    "copy": "plain copy of the files, synced",
    "save": "save, until the checkpoint is there",
    "wait": "save in the background: training waits",
    "written": "  until it is on the disk",
    "verify": "load: hashes of all files",
    "restore": "  weights and moments into the engine",
}


def print_report(result: dict[str, Any]) -> None:
    """One line for each figure and, below them, what they were measured on."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    table = Table(box=None, padding=(0, 3, 0, 0))
    for heading in (f"median of {result['turns']} turns", "seconds", "fastest .. slowest", "GB/s"):
        table.add_column(heading, justify="left" if heading.startswith("median") else "right")
    gigabytes = result["bytes"] / 1e9
    for name, label in ROWS.items():
        seconds = result["seconds"][name]
        spread = f"{seconds['min']:.3f} .. {seconds['max']:.3f}"
        table.add_row(label, f"{seconds['median']:.3f}", spread, f"{gigabytes / seconds['median']:.2f}")
    console.print(table)
    facts = {
        "save / copy": f"{result['save_over_copy']:.2f}x",
        "state": f"{gigabytes:.3g} GB, {result['parameters']:,} parameters, ZeRO {result['stage']}",
        **{name: result[name] for name in ("filesystem", "hardware", "software", "commit", "command", "date")},
    }
    console.print()
    print_facts(console, facts)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, examples=EXAMPLES)
    add = parser.add_argument
    add("--dir", type=Path, required=True, metavar="DIR", help="a folder on the disk to measure; left as it was")
    add("--gigabytes", type=float, default=1.0, metavar="N", help="weights and moments (default: %(default)s)")
    add("--stage", type=int, default=1, choices=range(4), help="of ZeRO (default: %(default)s)")
    add("--turns", type=int, default=5, metavar="N", help="of everything (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="also write everything to this file")
    add("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # launchers add it
    arguments = parser.parse_args(argv)
    if arguments.turns < 1:
        raise InputError(f"--turns: must be at least 1, not {arguments.turns}")
    if not 0.01 <= arguments.gigabytes < float("inf"):
        raise InputError(f"--gigabytes: must be at least 0.01, not {arguments.gigabytes}")
    for option, folder in {"--dir": arguments.dir, "--json": arguments.json and arguments.json.parent}.items():
        if folder and not folder.is_dir():
            raise InputError(f"{option}: {folder} is not a folder")
    return arguments


def main(argv: Sequence[str]) -> int:
    arguments = parse(argv)
    from benchmarks.checkpoint_timing import measure  # imports DeepSpeed, which takes seconds

    ranks = join(WatchdogSection())
    result = provenance(ranks.device, ranks.size)
    result |= measure(arguments.dir, arguments.gigabytes, arguments.stage, arguments.turns, ranks)
    if ranks.is_main:
        print_report(result)
        if arguments.json:
            arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    leave(DONE)


if __name__ == "__main__":
    run_command(main)
