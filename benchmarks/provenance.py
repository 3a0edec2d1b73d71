"""Where and by what a result was measured: what every result is kept with."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console

from pretrain.version import code_version


def provenance(device: torch.device, ranks: int) -> dict[str, str]:
    """Date, command, commit, hardware and software of this process."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": shlex.join(["python", *sys.argv]),
        "commit": _commit(),
        "hardware": _hardware(device, ranks),
        "software": f"Python {platform.python_version()}, torch {torch.__version__}, DeepSpeed {version('deepspeed')}",
    }


def print_facts(console: Console, facts: dict[str, str], width: int = 12) -> None:
    """A line each, their names in a column of `width` characters."""
    for name, fact in facts.items():
        console.print(f"{name:{width}} {fact}", markup=False, soft_wrap=True)


def _hardware(device: torch.device, ranks: int) -> str:
    if device.type == "cuda":
        return f"{ranks} x {torch.cuda.get_device_name(device)}"
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} logical cores; ranks x threads: {ranks} x {torch.get_num_threads()}"


def _commit() -> str:
    code = code_version()
    return f"{code.commit or 'unknown'}{' with uncommitted changes' if code.modified else ''}"
