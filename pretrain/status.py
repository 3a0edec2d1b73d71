"""Say on one screen how a run is: its outcome, progress, rate, time left and checkpoints.

The exit code is the run's own, and 0 while it runs: 0 done, 1 failed or killed, 2 bad input, 3 training aborted,
75 stopped on request.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script has its own folder first, where `config` or `evaluate` would shadow other packages' modules.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pretrain.command_line import ArgumentParser
from pretrain.config import load_config
from pretrain.errors import DONE, FAILED, STOPPED, InputError, Unavailable, run_command
from pretrain.hub.record import exported_steps, read_uploads
from pretrain.metrics import read_records, show_rate, unit_of
from pretrain.outcome import OUTCOME_FILE, Outcome, read_outcome
from pretrain.preflight import CONFIG_FILE
from pretrain.tasks.task import Record

EXAMPLES = """\
  python pretrain/status.py runs/demo
  python pretrain/status.py runs/demo --verify
"""

RATE_RECORDS = 20
"""The rate is that of the time since as many logged steps ago, validations and checkpoints included."""


def main(argv: Sequence[str]) -> int:
    parser = ArgumentParser(description=__doc__, examples=EXAMPLES)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--verify", action="store_true", help="hash every checkpoint: is it whole?")
    arguments = parser.parse_args(argv)
    run_dir = arguments.run_dir
    outcome = _final_outcome(run_dir)
    table = Table.grid(padding=(0, 3, 0, 0))
    for name, value in (
        ("run", str(run_dir)),
        *_outcome_rows(outcome),
        *_progress_rows(run_dir, outcome),
        *_checkpoint_rows(run_dir, arguments.verify),
        *_hub_rows(run_dir),
    ):
        table.add_row(name, Text(value, overflow="fold"))
    Console(width=None if sys.stdout.isatty() else 200).print(table, highlight=False)
    return DONE if outcome.code is None else outcome.code


def _final_outcome(run_dir: Path) -> Outcome:
    """What the run has come to; a process that was killed could not say so itself."""
    outcome = read_outcome(run_dir)
    if outcome is None:
        raise InputError(_no_run(run_dir))
    if outcome.ended is not None or _may_live(outcome):
        return outcome
    latest = read_outcome(run_dir)  # it may have ended well just now
    if latest is not None and latest.ended is not None:
        return latest
    message = f"pid {outcome.pid} on {outcome.host} is gone and could not say why; the same command goes on"
    return replace(outcome, outcome="killed", code=FAILED, message=message)


def _no_run(folder: Path) -> str:
    if (path := folder / OUTCOME_FILE).exists():
        return f"{path}: is damaged or cannot be read; the run's next attempt writes it anew"
    near = (*folder.glob(f"*/{OUTCOME_FILE}"), *(parent / OUTCOME_FILE for parent in folder.parents))
    meant = next((f"; did you mean {path.parent}?" for path in near if path.exists()), "")
    return f"{folder}: not the directory of a run that was started, it has no {OUTCOME_FILE}{meant}"


def _may_live(outcome: Outcome) -> bool:
    """Whether the process that writes the outcome lives, as far as can be told from this host."""
    if outcome.host != socket.gethostname():
        return True
    try:
        # One that was created later has only got the same number.
        return psutil.Process(outcome.pid).create_time() < datetime.fromisoformat(outcome.started).timestamp() + 1
    except psutil.NoSuchProcess:
        return False


def _outcome_rows(outcome: Outcome) -> Iterator[tuple[str, str]]:
    when = f" at {_local(outcome.ended)}" if outcome.ended is not None else ""
    who = f", pid {outcome.pid} on {outcome.host}" if outcome.code is None else f", exit code {outcome.code}"
    yield "outcome", f"{outcome.outcome}{when}{who}"
    if outcome.message is not None:
        yield "", f"{outcome.message}; the same command goes on" if outcome.code == STOPPED else outcome.message
    yield "attempt", f"{outcome.attempt}, started {_local(outcome.started)}"


def _progress_rows(run_dir: Path, outcome: Outcome) -> Iterator[tuple[str, str]]:
    metrics = run_dir / "metrics.jsonl"
    try:
        records = read_records(metrics)
    except FileNotFoundError:
        records = []
    except Unavailable as error:
        yield "step", str(error)
        return
    trained = [record for record in records if record["kind"] == "train"]
    if not trained:
        yield "step", "none logged yet"
        return
    last, steps = trained[-1], load_config(run_dir / CONFIG_FILE).train.steps
    step = max(last["step"], outcome.step or 0)
    unit = unit_of(last)
    trained_units = last[f"trained_{unit}"]
    yield "step", f"{step:,} of {steps:,} ({step / steps:.1%}), {trained_units:,} trained {unit}"
    rate = _steps_per_second(trained)
    yield "rate", f"{rate:.3g} steps/s, {show_rate(last[f'{unit}_per_second'])} trained {unit}/s"
    if outcome.code is None:
        yield "ETA", f"{timedelta(seconds=round((steps - step) / rate))}"
        yield "last record", f"{timedelta(seconds=round(time.time() - metrics.stat().st_mtime))} ago"
    yield "loss", _loss(last)
    validations = [record for record in records if record["kind"] == "validation"]
    if validations:
        yield "validation", _loss(validations[-1])
    skipped = [record for record in records if record["kind"] == "skipped"]
    last_skipped = f", the last in step {skipped[-1]['step']:,}: {skipped[-1]['problem']}" if skipped else ""
    # The last train record has counted those up to its step.
    count = last["skipped_steps"] + sum(record["step"] > last["step"] for record in skipped)
    yield "skipped", f"{count:,} step{'' if count == 1 else 's'}{last_skipped}"


def _steps_per_second(trained: Sequence[Record]) -> float:
    last = trained[-1]
    first = trained[-RATE_RECORDS] if len(trained) >= RATE_RECORDS else {"step": 0, "seconds": 0.0}
    return (last["step"] - first["step"]) / (last["seconds"] - first["seconds"])


def _loss(record: Record) -> str:
    # Bits per byte compare across tokenizers; the loss itself does not.
    value = record.get("bits_per_byte", record["loss"])
    unit = " bits/byte" if "bits_per_byte" in record else ""
    return f"{'not finite' if value is None else f'{value:.4f}{unit}'} at step {record['step']:,}"


def _checkpoint_rows(run_dir: Path, verify: bool) -> Iterator[tuple[str, str]]:
    from pretrain.checkpoint import checkpoints_of, damage  # needs torch, which takes seconds to import

    name = "checkpoints"
    for path in checkpoints_of(run_dir):
        size = sum(file.stat().st_size for file in path.iterdir())
        text = f"{path.name}, {_local(path.stat().st_mtime)}, {size / 2**30:.3f} GiB"
        if verify:
            text += f", {damage(path) or 'whole'}"
        yield name, text
        name = ""
    if name:
        yield name, "none"


def _hub_rows(run_dir: Path) -> Iterator[tuple[str, str]]:
    uploads, waiting = read_uploads(run_dir), exported_steps(run_dir)
    if uploads:
        # What was missed for long arrives last: the newest checkpoint is what people want, and main leads to it.
        to_last = [upload for upload in uploads if upload.repo == uploads[-1].repo]
        last = max(to_last, key=lambda upload: (upload.step, upload.revision == "main"))
        yield "hub", f"{last.revision} of {last.repo}, {_local(last.at)}, {last.url}"
    if waiting:
        steps = ", ".join(f"step-{step}" for step in waiting)
        yield "" if uploads else "hub", f"{steps} wait{'s' if len(waiting) == 1 else ''} to be uploaded"


def _local(moment: str | float) -> str:
    when = datetime.fromisoformat(moment) if isinstance(moment, str) else datetime.fromtimestamp(moment)
    return f"{when.astimezone():%Y-%m-%d %H:%M:%S}"


if __name__ == "__main__":
    run_command(main)
