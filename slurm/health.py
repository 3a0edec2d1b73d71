"""Is this node fit to train? Prints its name if so, else what is wrong with it on stderr.

Needs nothing but Python, as it runs on each node before anything else does.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

LIMITS_GIB = {"HEALTH_DISK_GIB": 10.0, "HEALTH_MEMORY_GIB": 8.0}
"""Defaults of the environment variables."""
MAX_CLOCK_SECONDS = 60.0
GPU_SECONDS = 120.0
SITE_SECONDS = 60.0
GPU_CHECK = """
import sys, torch
if torch.cuda.device_count() < int(sys.argv[1]):
    sys.exit(f"{torch.cuda.device_count()} answer, not {sys.argv[1]}")
for index in range(torch.cuda.device_count()):
    ones = torch.ones(1024, 1024, device=f"cuda:{index}")
    if not (ones @ ones == 1024).all():
        sys.exit(f"GPU {index} multiplies wrongly")
    free, total = torch.cuda.mem_get_info(index)
    if free < 0.9 * total:
        sys.exit(f"GPU {index} has {free >> 30} of {total >> 30} GiB free: another process is on it")
"""
EPILOG = """\
environment:
  HEALTH_DISK_GIB      free disk wanted in the run directory and for temporary files (default 10)
  HEALTH_MEMORY_GIB    free memory wanted (default 8)
  HEALTH_COMMAND       the site's own check: a shell command that fails on a node not to be used
"""


class BadLimit(Exception):
    """The environment asks for what is no amount; the message names the variable."""


def limit_gib(name: str) -> float:
    """What the environment asks for. Raises BadLimit."""
    text = os.environ.get(name, LIMITS_GIB[name])
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise BadLimit(f"{name}: must be a number of GiB, not {text!r}")
    return value


def problems(run: Path, clock: float) -> Iterator[str]:
    if abs(ahead := time.time() - clock) > MAX_CLOCK_SECONDS:
        yield f"clock: {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} that of the job's first node"
    yield from _memory_problems(limit_gib("HEALTH_MEMORY_GIB"))
    for folder in (run, Path(tempfile.gettempdir())):
        yield from _disk_problems(folder, limit_gib("HEALTH_DISK_GIB"))
    if gpus := int(os.environ.get("SLURM_GPUS_ON_NODE", 0)):
        yield from _gpu_problems(gpus)
    if command := os.environ.get("HEALTH_COMMAND"):
        for problem in _failure(["bash", "-c", command], SITE_SECONDS):
            yield f"HEALTH_COMMAND: {problem}"


def _memory_problems(wanted_gib: float) -> Iterator[str]:
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) / 2**20
    if available < wanted_gib:
        yield f"memory: {available:.1f} GiB available, not {wanted_gib:g}"


def _disk_problems(folder: Path, wanted_gib: float) -> Iterator[str]:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(folder).free / 2**30
    except OSError as error:
        yield f"disk: {folder} cannot be written ({error.strerror})"
        return
    if free < wanted_gib:
        yield f"disk: {free:.1f} GiB free in {folder}, not {wanted_gib:g}"


def _gpu_problems(wanted: int) -> Iterator[str]:
    # In a process of its own: a GPU that does not answer hangs whoever asks.
    for problem in _failure([sys.executable, "-c", GPU_CHECK, str(wanted)], GPU_SECONDS):
        yield f"GPUs: {problem}"


def _failure(command: Sequence[str], seconds: float) -> Iterator[str]:
    try:
        finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        yield f"no answer within {seconds:g} s"
        return
    if finished.returncode:
        lines = finished.stdout.strip().splitlines()
        yield lines[-1] if lines else f"exit code {finished.returncode}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="the run directory")
    parser.add_argument("--clock", type=float, default=time.time(), metavar="SECONDS", help="what time it is elsewhere")
    arguments = parser.parse_args()
    # A job whose time limit is near asks its ranks to stop: this process is none of them.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    try:
        found = list(problems(arguments.run, arguments.clock))
    except BadLimit as error:
        found = [str(error)]
    for problem in found:
        print(f"{node}: {problem}", file=sys.stderr)
    if not found:
        print(node)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
