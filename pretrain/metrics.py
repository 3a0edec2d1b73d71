"""Where a run's numbers go: metrics.jsonl, the console, TensorBoard and Weights & Biases."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import xxhash

from pretrain.config import RunConfig, dump_config
from pretrain.files import replace_text

Record = dict[str, Any]
"""One line of metrics.jsonl: `kind` (``train`` or ``validation``), `step` and values; what is not finite is None."""

Tracker = Callable[[int, dict[str, float]], None]
"""Takes a step and its values by name, such as ``train/loss``."""

TRACKED_AS = {"train": "train", "validation": "val"}


class MetricsLog:
    """Writes records to metrics.jsonl, the console and the trackers that the configuration asks for."""

    def __init__(self, config: RunConfig, resumed_step: int) -> None:
        folder = config.run.dir
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(folder / "config.yaml", dump_config(config))
        path = folder / "metrics.jsonl"
        drop_records_after(path, resumed_step)
        self._steps = config.train.steps
        self._resources = ExitStack()
        self._file = self._resources.enter_context(path.open("a"))
        self._trackers: list[Tracker] = []
        if config.logging.tensorboard:
            self._trackers.append(_tensorboard(folder / "tensorboard", resumed_step, self._resources))
        if config.logging.wandb_project:
            self._trackers.append(_wandb(config, self._resources))

    def close(self) -> None:
        """Let the trackers finish."""
        self._resources.close()

    def write(self, record: Record, eta: float | None = None) -> None:
        """Record values everywhere; `eta` is in seconds."""
        record = _finite(record)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        numbers = {
            f"{TRACKED_AS[record['kind']]}/{key}": value
            for key, value in record.items()
            if key not in ("kind", "step") and isinstance(value, int | float)
        }
        for track in self._trackers:
            track(record["step"], numbers)
        print(console_line(record, self._steps, eta), flush=True)


def console_line(record: Record, steps: int, eta: float | None = None) -> str:
    """One record for people."""
    fields = [f"step {record['step']:>{len(str(steps))}}/{steps}"]
    if record["kind"] == "validation":
        fields.append(f"validation loss {_number(record['loss'], '.4f')}")
        fields.append(f"{_number(record['bits_per_byte'], '.4f')} bits/byte")
        fields.append(f"perplexity {_number(record['perplexity'], '.4g')}")
    else:
        fields.append(f"loss {_number(record['loss'], '.4f')}")
        fields.append(f"{_number(record['bits_per_byte'], '.4f')} bits/byte")
        fields.append(f"lr {record['lr']:.2e}")
        fields.append(f"grad norm {_number(record['grad_norm'], '.3g')}")
        fields.append(f"{record['tokens_per_second']:,.0f} tokens/s")
        fields.append(f"MFU {record['mfu']:.1%}")
        fields.append(f"{record['memory_gib']:.2f} GiB")
        if record["skipped_steps"]:
            fields.append(f"{record['skipped_steps']} skipped")
    if eta is not None:
        fields.append(f"ETA {timedelta(seconds=round(eta))}")
    return " | ".join(fields)


def read_records(path: Path) -> list[Record]:
    """All records of a metrics.jsonl but a last line that was cut off."""
    records = []
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            records.append(json.loads(line))
    return records


def drop_records_after(path: Path, step: int) -> None:
    """Forget what a run that goes on from `step` will record again."""
    if path.exists():
        kept = [json.dumps(record) + "\n" for record in read_records(path) if record["step"] <= step]
        replace_text(path, "".join(kept))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None, spec: str) -> str:
    return "not finite" if value is None else format(value, spec)


def _tensorboard(folder: Path, resumed_step: int, resources: ExitStack) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder), purge_step=resumed_step + 1)
    resources.callback(writer.close)

    def track(step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return track


def _wandb(config: RunConfig, resources: ExitStack) -> Tracker:
    import wandb

    folder = config.run.dir.resolve()
    offline = "WANDB_MODE" not in os.environ and not wandb.login(prompt=False, verify=False)
    run = wandb.init(
        project=config.logging.wandb_project,
        dir=folder,
        name=folder.name,
        id=xxhash.xxh64_hexdigest(str(folder).encode()),
        resume="allow",
        mode="offline" if offline else None,
        config=config.model_dump(mode="json"),
        settings=wandb.Settings(silent=True),
    )
    resources.callback(wandb.teardown)  # waits for what `finish` only starts
    resources.callback(run.finish)
    return lambda step, numbers: run.log(numbers, step=step)
