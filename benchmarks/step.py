"""Measure a run's training step: time, tokens/s, MFU, data wait and memory, beside einsum-softmax attention."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script has its own folder first, where `config` or `evaluate` would shadow other packages' modules.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.provenance import print_facts, provenance
from pretrain.command_line import ArgumentParser
from pretrain.config import load_config
from pretrain.distributed import join, leave
from pretrain.errors import DONE, InputError, run_command
from pretrain.tasks.causal_lm.config import CausalLMConfig

EXAMPLES = """\
  python benchmarks/step.py --config configs/demo.yaml
  python benchmarks/step.py --config configs/demo.yaml train.precision=fp32 --steps 20 --json result.json
  deepspeed benchmarks/step.py --config configs/demo.yaml train.zero.stage=2
"""


def rows(arm: dict[str, Any]) -> dict[str, str]:
    """One column of the table: label -> figure."""

    def ms(*seconds: float) -> str:
        return " .. ".join(f"{x * 1000:,.1f}" for x in seconds) + " ms"

    return {
        "step time": ms(arm["step_seconds"]),
        "  fastest .. slowest": ms(arm["step_seconds_min"], arm["step_seconds_max"]),
        **{f"  {phase}": ms(seconds) for phase, seconds in arm["phase_seconds"].items()},
        "trained tokens/s": f"{arm['tokens_per_second']:,.0f}",
        "MFU": f"{arm['mfu']:.1%}",
        "data wait": f"{arm['data_wait']:.2%}",
        "peak memory": f"{arm['peak_memory_gib']:.2f} GiB",
    }


def print_report(result: dict[str, Any], config: CausalLMConfig) -> None:
    """Two columns of figures and, below them, what they were measured on."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    table = Table(box=None, padding=(0, 3, 0, 0))
    for heading in (f"median of {result['steps']} steps", "this run", "einsum-softmax attention"):
        table.add_column(heading, justify="left" if heading.startswith("median") else "right")
    baseline = rows(result["baseline"])
    for label, figure in rows(result["ours"]).items():
        table.add_row(label, figure, baseline[label])
    console.print(table)
    train, model = config.train, config.model
    facts = {
        "speed-up": f"{result['speedup']:.2f}x",
        "attention": result["attention"],
        "matmul peak": f"{result['matmul_peak_flops'] / 1e12:.3g} TFLOP/s in {train.precision}",
        "model": f"{result['parameters']:,} parameters, context {model.max_seq_len}, {model.max_latents} latents, "
        f"{result['training_flops_per_token']:.4g} FLOPs per trained token",
        "step": f"{train.global_batch} sequences in micro-batches of {train.micro_batch}, ZeRO {train.zero.stage}, "
        f"{train.precision}, checkpointing {train.activation_checkpointing}, tokens: {result['tokens']}",
        **{name: result[name] for name in ("hardware", "software", "commit", "command", "date")},
    }
    console.print()
    print_facts(console, facts)


def main(argv: Sequence[str]) -> int:
    parser = ArgumentParser(description=__doc__, examples=EXAMPLES)
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="a training run's YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="values that replace those of the file")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="steps of each kind (default: 10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything to this file")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # launchers add it
    arguments = parser.parse_intermixed_args(argv)
    if arguments.steps < 1:
        raise InputError(f"--steps: must be at least 1, not {arguments.steps}")
    if arguments.json and not arguments.json.parent.is_dir():
        raise InputError(f"--json: {arguments.json.parent} is not a folder")
    config = load_config(arguments.config, arguments.overrides)
    if not isinstance(config, CausalLMConfig):
        raise InputError(f"{arguments.config}: is of task {config.task}; this times causal_lm")
    from benchmarks.step_timing import measure  # imports DeepSpeed, which takes seconds

    ranks = join(config.watchdog)
    result = provenance(ranks.device, ranks.size) | measure(config, ranks, arguments.steps)
    if ranks.is_main:
        print_report(result, config)
        if arguments.json:
            result["config"] = config.model_dump(mode="json")
            arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    leave(DONE)


if __name__ == "__main__":
    run_command(main)
