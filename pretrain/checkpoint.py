"""Checkpoints: whole or absent, checked when read, independent of ranks and ZeRO stage.

A checkpoint is a folder of safetensors with whole fp32 tensors (weights, Adam's two moments), `state.json`, and
`manifest.json` with the size and xxh64 of each file. It is written under a temporary name, synced and renamed.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from perceiver_ar.models.perceiver_ar import PerceiverARConfig
from pretrain.distributed import RanksError
from pretrain.errors import InputError
from pretrain.files import hash_file, sync

if TYPE_CHECKING:
    from pretrain.engine import Engine, Kind

FORMAT = 2
FILES: dict[Kind, str] = {
    "weight": "model.safetensors",
    "exp_avg": "optimizer-exp_avg.safetensors",
    "exp_avg_sq": "optimizer-exp_avg_sq.safetensors",
}


def checkpoint_path(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """Completed steps, by the folder's name."""
    return int(checkpoint.name.removeprefix("step-"))


def save_checkpoint(run_dir: Path, engine: Engine, state: dict[str, Any], keep: int) -> None:
    """Write ``checkpoints/step-<state["step"]>`` and delete all but the newest `keep`. Collective.

    Raises InputError on every rank, leaving older checkpoints as they are, where the file system refuses.
    """
    final = checkpoint_path(run_dir, state["step"])
    temporary = final.with_name(f".tmp-{final.name}")
    failure: OSError | None = None
    try:
        if engine.ranks.is_main:
            remove_unfinished(run_dir)
            temporary.mkdir(parents=True)
    except OSError as error:
        failure = error
    for kind, name in FILES.items():
        # The gathering is collective, so rank 0 goes on with it even when its disk is full.
        tensors = (engine.gather(parameter, kind) for parameter in engine.shapes)
        if engine.ranks.is_main and failure is None:
            try:
                write_safetensors(temporary / name, engine.shapes, tensors)
            except OSError as error:
                failure = error
        for _ in tensors:
            pass
    try:
        if engine.ranks.is_main and failure is None:
            state = {"format": FORMAT, "adam_step": engine.adam_step, **state}
            _write_json(temporary / "state.json", state)
            _publish(temporary, final)
            _prune(run_dir, keep)
    except OSError as error:
        failure = error
    if engine.ranks.max(failure is not None):
        if engine.ranks.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise RanksError(f"run.dir: cannot write checkpoint {final}: {failure or 'rank 0 failed'}")


def restore_checkpoint(checkpoint: Path, engine: Engine) -> None:
    """Set fp32 weights, moments and Adam's step count of `engine`, whose task already has the weights."""
    for kind, name in FILES.items():
        with safe_open(checkpoint / name, framework="pt") as file:
            for parameter in engine.shapes:
                engine.restore(parameter, kind, file.get_tensor(parameter))
    engine.adam_step = read_state(checkpoint)["adam_step"]


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The newest checkpoint of a run whose files are what they were when written; warns about those passed over."""
    for checkpoint in sorted((run_dir / "checkpoints").glob("step-*"), reverse=True):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        print(f"warning: passing over damaged checkpoint {checkpoint}: {problem}", file=sys.stderr, flush=True)
    return None


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        files = json.loads((checkpoint / "manifest.json").read_text())["files"]
        for name, entry in files.items():
            if (size := (checkpoint / name).stat().st_size) != entry["size"]:
                return f"{name} has {size} bytes instead of {entry['size']}"
            if hash_file(checkpoint / name) != entry["xxh64"]:
                return f"{name} does not have the hash in manifest.json"
    except OSError as error:
        return f"{Path(error.filename).name} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError):
        return "manifest.json cannot be parsed"
    return None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """``state.json``: step, trained tokens, configuration, corpus, ..."""
    state = json.loads((checkpoint / "state.json").read_text())
    if state["format"] != FORMAT:
        raise InputError(f"{checkpoint}: has format {state['format']}, this program reads {FORMAT}: train anew")
    return state


def load_weights(checkpoint: Path) -> tuple[PerceiverARConfig, dict[str, Tensor]]:
    """The model's configuration and fp32 weights by their names in its state dict."""
    return PerceiverARConfig(**read_state(checkpoint)["config"]["model"]), load_file(checkpoint / FILES["weight"])


def write_safetensors(path: Path, shapes: dict[str, tuple[int, ...]], tensors: Iterable[Tensor]) -> None:
    """Write fp32 `tensors`, in the order of `shapes`, one at a time, so that no more than one need exist."""
    header: dict[str, Any] = {}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": (offset, end)}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            file.write(tensor.to("cpu", torch.float32).contiguous().flatten().view(torch.uint8).numpy().data)
    sync(path)


def remove_unfinished(run_dir: Path) -> None:
    """Delete what an interrupted save has left behind."""
    for path in (run_dir / "checkpoints").glob(".tmp-*"):
        shutil.rmtree(path)


def _publish(temporary: Path, final: Path) -> None:
    files = {p.name: {"size": p.stat().st_size, "xxh64": hash_file(p)} for p in sorted(temporary.iterdir())}
    _write_json(temporary / "manifest.json", {"files": files})
    sync(temporary)
    if final.exists():
        shutil.rmtree(final)
    os.rename(temporary, final)
    sync(final.parent)


def _prune(run_dir: Path, keep: int) -> None:
    for old in sorted((run_dir / "checkpoints").glob("step-*"))[:-keep]:
        # Renamed first: a half-deleted checkpoint must not look like a damaged one.
        doomed = old.with_name(f".tmp-{old.name}")
        os.rename(old, doomed)
        shutil.rmtree(doomed)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1))
    sync(path)
