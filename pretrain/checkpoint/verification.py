"""Whether a checkpoint is what it was when it was written."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pretrain.checkpoint.layout import MANIFEST, checkpoints_of, step_of
from pretrain.distributed import Ranks, RanksError
from pretrain.errors import FAILED
from pretrain.files import hash_file


class Unreadable(str):
    """What `damage` says of files that may well be whole, on a disk that does not give them out."""

    __slots__ = ()


def newest_whole(run_dir: Path, ranks: Ranks, before: int | None = None) -> Path | None:
    """The newest checkpoint of a run whose files are what they were; warns about those passed over. Collective.

    With `before`, only those of earlier steps count.
    Each rank hashes its share of the files, so all must see the same `run_dir`. Raises RanksError where there are
    checkpoints and none is whole: a disk that cannot be read for a while is no reason to train anew.
    """
    unreadable = False

    def problem(checkpoint: Path) -> str | None:
        nonlocal unreadable
        found = ranks.gather(damage(checkpoint, ranks.rank, ranks.size))
        unreadable |= any(isinstance(problem, Unreadable) for problem in found)
        return next(filter(None, found), None)

    # A folder may list differently on another node for a while: what rank 0 sees counts.
    [checkpoints, *_] = ranks.gather(checkpoints_of(run_dir))
    checkpoints = [path for path in checkpoints if before is None or step_of(path) < before]
    newest = _newest(checkpoints, problem, tell=ranks.is_main)
    if checkpoints and newest is None and unreadable:
        raise RanksError(
            f"run.dir: checkpoints in {checkpoints[0].parent} cannot be read now, and none is whole of those that can",
            FAILED,
        )
    if checkpoints and newest is None:
        raise RanksError(
            f"run.dir: of the checkpoints in {checkpoints[0].parent} none is whole; restore one, or remove them all to "
            "train anew"
        )
    return newest


def latest_checkpoint(run_dir: Path) -> Path | None:
    """What `newest_whole` finds, for a process that is no rank of a run."""
    return _newest(checkpoints_of(run_dir), damage, tell=True)


def damage(checkpoint: Path, share: int = 0, of: int = 1) -> str | None:
    """What is wrong with a checkpoint's files, or None; of every `of`-th file only, from the `share`-th on."""
    path = checkpoint / MANIFEST
    try:
        files = json.loads(path.read_text())["files"]
        for name in sorted(files)[share::of]:
            path = checkpoint / name
            if (size := path.stat().st_size) != files[name]["size"]:
                return f"{name} has {size} bytes instead of {files[name]['size']}"
            if hash_file(path) != files[name]["xxh64"]:
                return f"{name} does not have the hash in {MANIFEST}"
            if path.suffix == ".safetensors" and not _is_safetensors(path):
                return f"{name} is not a safetensors file"
    except OSError as error:
        lost = isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError)
        return (str if lost else Unreadable)(f"{Path(error.filename or path).name} cannot be read ({error.strerror})")
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be parsed"
    return None


def _is_safetensors(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt"):
            return True
    except SafetensorError:
        return False


def _newest(checkpoints: Iterable[Path], problem_of: Callable[[Path], str | None], *, tell: bool) -> Path | None:
    for checkpoint in checkpoints:
        problem = problem_of(checkpoint)
        if problem is None:
            return checkpoint
        if tell:
            print(f"warning: passing over damaged checkpoint {checkpoint}: {problem}", file=sys.stderr, flush=True)
    return None
