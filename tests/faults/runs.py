"""Comparing runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TIMED = {"seconds", "tokens_per_second", "mfu", "data_wait", "memory_gib"}


def records(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock or the machine decides."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMED} for line in lines]


def tensors(run: Path, step: int) -> dict[str, bytes]:
    """The tensor files of a checkpoint by name."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def assert_same(run: Path, expected: Path) -> None:
    """Demand that two runs on as many ranks have the same records and, bit by bit, the same last checkpoint."""
    assert records(run) == records(expected)
    step = records(expected)[-1]["step"]
    assert tensors(expected, step)
    assert tensors(run, step) == tensors(expected, step)
