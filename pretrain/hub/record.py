"""``hub/uploads.json`` of a run: what of it is on the Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from pretrain.files import replace_text

HUB_FOLDER = "hub"
"""In the run directory: exported checkpoints on their way, as step-N, and the record."""
UPLOADS_FILE = "uploads.json"


@dataclass(frozen=True)
class Upload:
    """A checkpoint that has reached a revision."""

    repo: str
    step: int
    revision: str
    url: str
    at: str
    """ISO 8601."""


def read_uploads(run_dir: Path) -> list[Upload]:
    """In order. None at all where there is no file, or one that cannot be read: the Hub knows what it has anyway."""
    try:
        return [Upload(**entry) for entry in json.loads((run_dir / HUB_FOLDER / UPLOADS_FILE).read_text())["uploads"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write_uploads(run_dir: Path, uploads: Iterable[Upload]) -> None:
    """Raises OSError."""
    replace_text(
        run_dir / HUB_FOLDER / UPLOADS_FILE,
        json.dumps({"uploads": [asdict(upload) for upload in uploads]}, indent=1) + "\n",
    )


def exported_steps(run_dir: Path) -> list[int]:
    """Of the checkpoints that wait for the Hub, the newest first."""
    names = (path.name for path in (run_dir / HUB_FOLDER).glob("step-*"))
    return sorted((int(name[5:]) for name in names if re.fullmatch(r"step-\d+", name)), reverse=True)


def wanted(steps: Iterable[int], every: int, last: int) -> set[int]:
    """Of the steps that have a checkpoint, or had one, those that go to the Hub: the first at or after each multiple of
    `every` (0 for none), and `last`."""
    descending = sorted(steps, reverse=True)
    firsts = {step // every: step for step in descending if step >= every}.values() if every else ()
    return {*firsts, *(step for step in descending if step == last)}
