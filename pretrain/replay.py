"""Take a step of a run once more, from the checkpoint before it, and show what happened in it."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script has its own folder first, where `config` or `evaluate` would shadow other packages' modules.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import json
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pretrain.command_line import ArgumentParser
from pretrain.config import RunConfig, load_config
from pretrain.console import print_line
from pretrain.errors import DONE, InputError, run_command
from pretrain.metrics import read_records
from pretrain.outcome import read_outcome
from pretrain.preflight import CONFIG_FILE
from pretrain.tasks.task import Record

if TYPE_CHECKING:
    from pretrain.distributed import Ranks

EXAMPLES = """\
  python pretrain/replay.py --run runs/demo --step 1234
  torchrun --nproc-per-node 8 pretrain/replay.py --run runs/demo --step 1234 --json > step.json
  python pretrain/replay.py --run runs/demo --step 1234 train.precision=fp32

Steps from the checkpoint on are taken as the run took them; the numbers are the run's own to the last bit on as many
ranks of the same kind, and to rounding on others or where it was compiled. Nothing is written into the run directory.
The loss is that of the step alone; the run's own records have the mean since the one before, logging.every steps ago.
"""
SHOWN_CHARACTERS = 160
"""Of a sample's text, in the table; --json has all of it."""
PLACE = ("corpus", "window", "example", "epoch", "stream")
"""What may be known of where a sample comes from."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, examples=EXAMPLES)
    add = parser.add_argument
    add("--run", type=Path, required=True, metavar="DIR", help="the run directory")
    add("--step", type=int, required=True, metavar="N", help="the step to look into; the first is 1")
    add("--checkpoint", type=Path, metavar="DIR", help="begin here (default: the run's newest whole one before N)")
    add("--top", type=int, default=8, metavar="K", help="worst samples and steepest parameters to show (%(default)s)")
    add("--json", action="store_true", help="print JSON instead of tables")
    add("overrides", nargs="*", metavar="key.sub=value", help="replaces a value of the run's configuration")
    add("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # launchers add it
    arguments = parser.parse_intermixed_args(argv)
    if arguments.top < 1:
        raise InputError(f"--top: must be at least 1, not {arguments.top}")
    return arguments


def main(argv: Sequence[str]) -> NoReturn:
    arguments = parse(argv)
    run(run_config(arguments), arguments)


def run_config(arguments: argparse.Namespace) -> RunConfig:
    """The run's configuration, wherever the run lies now."""
    path = arguments.run / CONFIG_FILE
    if not path.is_file():
        raise InputError(f"--run: {arguments.run} is no run directory, it has no {CONFIG_FILE}")
    config = load_config(path, arguments.overrides)
    if not 1 <= arguments.step <= config.train.steps:
        raise InputError(f"--step: must be from 1 to train.steps ({config.train.steps}), not {arguments.step}")
    return config.model_copy(update={"run": config.run.model_copy(update={"dir": arguments.run})})


def run(config: RunConfig, arguments: argparse.Namespace) -> NoReturn:
    """Replay as one of the ranks that the launcher started, and end this process."""
    # DeepSpeed takes seconds to import: bad input is not to wait for it.
    from pretrain.distributed import end_with, join

    def work() -> tuple[int, str]:
        replay(config, arguments, join(config.watchdog))
        return DONE, ""

    end_with(work)


def replay(config: RunConfig, arguments: argparse.Namespace, ranks: Ranks) -> None:
    """Take the steps and show the last one. Collective."""
    from pretrain.inspection import inspect_step

    checkpoint = find_start(arguments, ranks)
    if ranks.is_main:
        start = "the beginning" if checkpoint is None else checkpoint
        print(f"replaying up to step {arguments.step} from {start}", file=sys.stderr, flush=True)
    found = inspect_step(config, checkpoint, arguments.step, arguments.top, ranks)
    if ranks.is_main:
        with suppress(BrokenPipeError):  # whoever read it has seen enough, as `head` has
            show(found, recorded(arguments.run, arguments.step, config.logging.every), as_json=arguments.json)


def find_start(arguments: argparse.Namespace, ranks: Ranks) -> Path | None:
    """The checkpoint that was asked for, or the newest whole one before the step; None for the beginning. Collective.

    Raises RanksError where the one asked for is damaged or not of an earlier step, or all before the step are damaged.
    """
    from pretrain.checkpoint import newest_whole

    if arguments.checkpoint is None:
        return newest_whole(arguments.run, ranks, before=arguments.step)
    ranks.together(lambda: check_start(arguments) if ranks.is_main else None)
    return arguments.checkpoint


def check_start(arguments: argparse.Namespace) -> None:
    from pretrain.checkpoint import checkpoints_of, damage, read_state

    checkpoint = arguments.checkpoint
    if found := checkpoints_of(checkpoint):
        raise InputError(f"--checkpoint: {checkpoint} is a run directory; name a checkpoint in it, such as {found[0]}")
    if (problem := damage(checkpoint)) is not None:
        raise InputError(f"--checkpoint: {checkpoint} is no whole checkpoint: {problem}")
    if (saved := read_state(checkpoint)["step"]) >= arguments.step:
        raise InputError(f"--checkpoint: {checkpoint} is of step {saved}, not before --step {arguments.step}")


def recorded(run_dir: Path, step: int, every: int) -> Record | str:
    """What the run itself noted about the step, or why it has not; it logs `every` so many steps."""
    path = run_dir / "metrics.jsonl"
    records = read_records(path) if path.is_file() else []
    kinds = {record["kind"]: record for record in records if record["step"] == step}
    if found := kinds.get("skipped") or kinds.get("train"):
        return found
    outcome = read_outcome(run_dir)
    taken = max((record["step"] for record in records), default=0)
    if outcome is not None and outcome.step is not None:
        taken = max(taken, outcome.step)
    return f"nothing: the run came to step {taken:,}" if step > taken else f"nothing: logging.every is {every:,}"


def show(found: Record, noted: Record | str, *, as_json: bool) -> None:
    """`noted` is what `recorded` returns."""
    if as_json:
        print(json.dumps(found | {"recorded": None if isinstance(noted, str) else noted}, indent=1))
        return
    console = Console()
    for name, value in summary(found, noted):
        print_line(console, f"{name:<16}{value}")
    console.print(samples_table(found["samples"]))
    console.print(parameters_table(found["parameters"]))


def summary(found: Record, noted: Record | str) -> list[tuple[str, str]]:
    """Lines of name and value."""
    lines = [
        ("step", f"{found['step']:,}, from step {found['from_step']:,}"),
        ("loss", _number(found["loss"])),
        ("gradient norm", _number(found["grad_norm"])),
        ("learning rate", f"{found['lr']:.3e}"),
        ("judged", f"skipped: {found['problem']}" if found["problem"] else "applied"),
    ]
    if isinstance(noted, str):
        lines.append(("recorded", noted))
    else:
        was = f"skipped: {noted['problem']}" if noted["kind"] == "skipped" else "applied"
        lines.append(("recorded", f"{was}; gradient norm {_number(noted['grad_norm'])}"))
    places = [f"{place['module']} (rank {place['rank']})" for place in found["not_finite"]]
    lines.append(("not finite", f"first in the output of {', '.join(places)}" if places else "no module's output"))
    return lines


def samples_table(samples: list[Record]) -> Table:
    table = Table(title="highest losses, per target", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("sample", "loss"):
        table.add_column(heading, justify="right")
    for heading in ("from", "targets"):
        table.add_column(heading, overflow="fold")
    for sample in samples:
        place = ", ".join(f"{name} {sample[name]}" for name in PLACE if name in sample)
        table.add_row(f"{sample['sample']:,}", _number(sample["loss"]), place, _excerpt(sample["text"]))
    return table


def parameters_table(parameters: list[Record]) -> Table:
    table = Table(title="largest gradients", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("parameter")
    table.add_column("norm", justify="right")
    for parameter in parameters:
        table.add_row(parameter["parameter"], _number(parameter["grad_norm"]))
    return table


def _excerpt(text: str) -> Text:
    cut = text[:SHOWN_CHARACTERS]
    return Text(repr(cut)[1:-1] + ("..." if len(text) > len(cut) else ""))


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.6g}"


if __name__ == "__main__":
    run_command(main)
