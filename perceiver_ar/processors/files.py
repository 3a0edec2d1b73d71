"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to; at the end it gets that name, and where anything goes wrong it is removed."""
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        yield temporary
        os.rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
