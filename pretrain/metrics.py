"""Where a run's numbers go: metrics.jsonl, the console and the trackers."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from pretrain.config import RunConfig, dump_config
from pretrain.errors import Unavailable
from pretrain.files import replace_text
from pretrain.tasks.task import Record
from pretrain.trackers import Trackers

TRACKED_AS = {"train": "train", "validation": "val", "skipped": "skipped"}


class MetricsLog:
    """Writes records to metrics.jsonl, the console and the trackers that the configuration asks for.

    A record has a `kind` (``train``, ``validation`` or ``skipped``), a `step` and values; what is not finite is None.
    The run folder may be full, read-only or gone for a while: what cannot be written is kept, and written in order as
    soon as it can be. Each outage is warned about once.
    """

    def __init__(self, config: RunConfig, resumed_step: int) -> None:
        self._folder, self._steps = config.run.dir, config.train.steps
        self._config = dump_config(config)
        self._config_is_due = True
        self._pending: list[str] = []
        self._failing = False
        self._path = self._folder / "metrics.jsonl"
        self._resumed_step = resumed_step
        self._end: int | None = None
        """Bytes of records in the file; None until those of another attempt are known to be gone."""
        self._flush()
        self._trackers = Trackers(config, resumed_step)

    def close(self) -> None:
        """Write what is kept, if it can be written now, and let the trackers finish."""
        self._flush()
        if self._pending:
            _warn(f"{self._path}: the last {len(self._pending)} records could not be written, they are lost")
        self._trackers.close()

    def write(self, record: Record, eta: float | None = None) -> None:
        """Record values everywhere; `eta` is in seconds."""
        record = _finite(record)
        self._pending.append(json.dumps(record) + "\n")
        self._flush()
        numbers = {
            f"{TRACKED_AS[record['kind']]}/{key}": value
            for key, value in record.items()
            if key not in ("kind", "step") and isinstance(value, int | float)
        }
        self._trackers.track(record["step"], numbers)
        print(console_line(record, self._steps, eta), flush=True)

    def sync(self) -> None:
        """Have the records so far on the disk itself, where they outlive the node."""
        self._flush(to_disk=True)

    def _flush(self, *, to_disk: bool = False) -> None:
        try:
            if self._end is None:
                self._end = drop_records_after(self._path, self._resumed_step)
            self._write_config()
            self._end = append_whole(self._path, self._end, "".join(self._pending).encode())
            self._pending.clear()
            if to_disk:
                with self._path.open("rb+") as file:
                    os.fsync(file.fileno())
        except OSError as error:
            if not self._failing:
                _warn(f"{error.filename or self._path}: {error.strerror}; records are kept until they can be written")
            self._failing = True
        else:
            self._failing = False

    def _write_config(self) -> None:
        path = self._folder / "config.yaml"
        if self._config_is_due or not path.exists():  # it goes where the folder goes
            self._folder.mkdir(parents=True, exist_ok=True)
            replace_text(path, self._config)
            self._config_is_due = False


def append_whole(path: Path, end: int, lines: bytes) -> int:
    """Write `lines` behind the first `end` bytes of a file, which they made that long; returns its new length.

    An earlier attempt may have left a part of `lines` there, where it failed so badly that it could not remove it: that
    part is not written again. A file that others have put in this place is appended to.

    Raises OSError; then nothing of `lines` is there, or a part that the next attempt will find.
    """
    with path.open("ab+", buffering=0) as file:
        file.seek(end)
        left = file.read()
        if not lines.startswith(left):
            left = b""
        start = file.seek(0, 2) - len(left)
        rest = memoryview(lines)[len(left) :]
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(start)
            raise
    return start + len(lines)


BOOKKEEPING = {
    *("kind", "step", "loss", "lr", "grad_norm", "mfu", "data_wait", "memory_gib", "skipped_steps", "batch_hash"),
    *("epochs", "seconds"),
}
"""Values of a record that say nothing of how good the model is."""
FORMATS = {"bits_per_byte": "{} bits/byte", "perplexity": "perplexity {}", "accuracy": "accuracy {}"}
PRECISIONS = {"bits_per_byte": ".4f", "perplexity": ".4g", "accuracy": ".2%"}


def unit_of(record: Record) -> str:
    """What the run counts as trained: ``tokens``, ``images``, ..."""
    return next(name.removeprefix("trained_") for name in record if name.startswith("trained_"))


def measures_of(record: Record) -> list[str]:
    """Names of what a record measures beside its loss, those of text first."""
    unit = unit_of(record)
    other = BOOKKEEPING | {f"trained_{unit}", f"{unit}_per_second"}
    numbers = [name for name, value in record.items() if name not in other and not isinstance(value, dict)]
    return [name for name in FORMATS if name in numbers] + [name for name in numbers if name not in FORMATS]


def show_measure(name: str, value: float | None) -> str:
    """For people, with its name."""
    return FORMATS.get(name, name.replace("_", " ") + " {}").format(_number(value, PRECISIONS.get(name, ".4g")))


def show_rate(value: float) -> str:
    """Of something a second: whole numbers where they are large enough to tell."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def console_line(record: Record, steps: int, eta: float | None = None) -> str:
    """One record for people."""
    fields = [f"step {record['step']:>{len(str(steps))}}/{steps}"]
    if record["kind"] == "validation":
        fields.append(f"validation loss {_number(record['loss'], '.4f')}")
        fields += [show_measure(name, record[name]) for name in measures_of(record)]
    elif record["kind"] == "skipped":
        first, last = record["samples"]
        fields.append(f"skipped: {record['problem']}")
        fields.append(f"samples {first} to {last}, worst {record['worst_samples'][0]['sample']}")
    else:
        fields.append(f"loss {_number(record['loss'], '.4f')}")
        fields += [show_measure(name, record[name]) for name in measures_of(record)]
        fields.append(f"lr {record['lr']:.2e}")
        fields.append(f"grad norm {_number(record['grad_norm'], '.3g')}")
        unit = unit_of(record)
        fields.append(f"{show_rate(record[f'{unit}_per_second'])} {unit}/s")
        fields.append(f"MFU {record['mfu']:.1%}")
        fields.append(f"{record['memory_gib']:.2f} GiB")
        if record["skipped_steps"]:
            fields.append(f"{record['skipped_steps']} skipped")
    if eta is not None:
        fields.append(f"ETA {timedelta(seconds=round(eta))}")
    return " | ".join(fields)


def read_records(path: Path) -> list[Record]:
    """All records of a metrics.jsonl but a last line that was cut off; warns about damaged lines.

    Raises FileNotFoundError, and Unavailable where the file is there and cannot be read now.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unavailable(f"{path}: cannot be read ({error.strerror})") from error
    found = [_parse(line) for line in lines if line.endswith(b"\n")]
    _warn_of_damage(path, found)
    return [record for record in found if record is not None]


def drop_records_after(path: Path, step: int) -> int:
    """Cut off what a run that goes on from `step` will record again; returns the length in bytes of what stays.

    A damaged line stays where it is: it is not worth the records behind it. Raises OSError.
    """
    found: list[Record | None] = []
    length = kept = 0
    try:
        file = path.open("rb+")  # in place, for which a full disk has room
    except FileNotFoundError:
        return 0
    with file:
        for line in file:
            record = _parse(line)
            if not line.endswith(b"\n") or (record is not None and record["step"] > step):
                break
            found.append(record)
            length += len(line)
            kept = length if record is not None else kept
        file.truncate(kept)
    _warn_of_damage(path, found)
    return kept


def _parse(line: bytes) -> Record | None:
    """None if it is damaged, as by a node that crashed."""
    try:
        record = json.loads(line.decode())
    except ValueError:
        return None
    return record if isinstance(record, dict) and {"kind", "step"} <= record.keys() else None


def _warn_of_damage(path: Path, records: Sequence[Record | None]) -> None:
    if damaged := [str(number) for number, record in enumerate(records, 1) if record is None]:
        _warn(f"{path}: lines {', '.join(damaged)} are damaged and left out")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None, spec: str) -> str:
    return "not finite" if value is None else format(value, spec)


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
