"""Which code runs: what results and checkpoints are kept with."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

VERSION = "0.1.0"
VERSION_FILE = "version.json"
"""Beside a copy of the code that is no checkout: a `CodeVersion`."""

_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class CodeVersion:
    version: str
    """Of the package."""
    commit: str | None
    """Twelve digits; None outside a checkout."""
    modified: bool
    """The checkout has changes that are not committed."""


@cache
def code_version() -> CodeVersion:
    """Of the code of this process, as it was when first asked for."""
    if (recorded := _ROOT / VERSION_FILE).exists():
        return CodeVersion(**json.loads(recorded.read_text()))
    # A copy of the code inside another checkout has a prefix there.
    if _git("rev-parse", "--show-prefix") != "":
        return CodeVersion(VERSION, commit=None, modified=False)
    return CodeVersion(VERSION, _git("rev-parse", "--short=12", "HEAD"), bool(_git("status", "--porcelain")))


def _git(*arguments: str) -> str | None:
    command = ["git", *arguments]
    try:
        return subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git here, or no checkout
        return None
