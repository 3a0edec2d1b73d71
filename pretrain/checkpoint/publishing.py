"""Folders of checkpoints: how they come into being and go, so that a kill at any instant leaves none that is half."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from pretrain.checkpoint.layout import MANIFEST, UNFINISHED, aside
from pretrain.checkpoint.writing import FileEntry, write_text
from pretrain.files import sync


def publish(temporary: Path, final: Path, files: Mapping[str, FileEntry]) -> None:
    """Make a checkpoint of a folder with `files`, in place of an earlier one of its step. Raises OSError."""
    for name in files:
        (temporary / name).stat()  # where nodes do not share the folder, others' files are not here
    write_text(temporary / MANIFEST, json.dumps({"files": files}, indent=1))
    sync(temporary)
    replaced = aside(final)
    if final.exists():
        if replaced.exists():
            delete(replaced)
        os.rename(final, replaced)
    os.rename(temporary, final)
    for folder in (final.parent, final.parent.parent):
        sync(folder)
    if replaced.exists():
        delete(replaced)


def delete(checkpoint: Path) -> None:
    """What cannot be deleted now, as NFS keeps files that are open, goes with the next save. Raises OSError."""
    # Renamed first: a half-deleted checkpoint must not look like a damaged one.
    os.rename(checkpoint, doomed := _doomed(checkpoint))
    shutil.rmtree(doomed, ignore_errors=True)


def delete_unfinished(folder: Path, besides: str) -> None:
    """Delete what interrupted saves and deletions have left in `folder`, as far as possible, but not `besides`."""
    for path in folder.glob(f"{UNFINISHED}*"):
        if path.name != besides:
            shutil.rmtree(path, ignore_errors=True)


def _doomed(checkpoint: Path) -> Path:
    doomed = checkpoint.with_name(f"{UNFINISHED}deleted-{checkpoint.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    return doomed
