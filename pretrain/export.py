"""Export a checkpoint as a Hugging Face folder: safetensors, what makes the model's inputs, and model card."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script has its own folder first, where `config` or `evaluate` would shadow other packages' modules.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import json
import re
from collections.abc import Sequence
from contextlib import suppress

from rich.console import Console

from perceiver_ar.hub import MODEL_TYPE, PERCEIVER_IO_TYPES, REPOSITORY
from pretrain.command_line import ArgumentParser
from pretrain.errors import DONE, InputError, run_command
from pretrain.hub.upload import HubUnavailable, make_repository, upload_folder
from pretrain.release import open_release
from pretrain.trained_run import TrainedRun

EXAMPLES = """\
  python pretrain/export.py --checkpoint runs/demo --out exports/demo
  python pretrain/export.py --checkpoint runs/demo/checkpoints/step-00001000 --out exports/demo-1000 --dtype bf16
  python pretrain/export.py --checkpoint runs/demo --out exports/demo --with-code --push-to-hub me/demo --private
"""

UNITS = {"MB": 10**6, "GB": 10**9}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, examples=EXAMPLES)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="DIR", help="a run directory or one of its checkpoints")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write; an earlier export there is replaced")
    add("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the weights (default: %(default)s)")
    add("--max-shard-size", default="5GB", metavar="SIZE", help="of one file of weights (default: %(default)s)")
    add("--with-code", action="store_true", help="add the model's source, for where perceiver_ar is not installed")
    add("--push-to-hub", metavar="OWNER/NAME", help="upload the folder too; the token is HF_TOKEN or that of the login")
    add("--private", action="store_true", help="make the repository a private one, where it is new")
    add("--data", nargs="+", metavar="CORPUS", help="the corpora of the run, if they have moved: in the config's order")
    arguments = parser.parse_args(argv)
    arguments.max_shard_size = parse_size(arguments.max_shard_size)
    repo = arguments.push_to_hub
    if repo is not None and not re.fullmatch(REPOSITORY, repo):
        raise InputError(f"--push-to-hub: {repo!r} is no name of a repository, which is OWNER/NAME")
    if arguments.private and repo is None:
        raise InputError("--private: says how to make the repository of --push-to-hub, which is missing")
    return arguments


def parse_size(text: str) -> int:
    """Bytes of a size such as ``500MB``."""
    match = re.fullmatch(r"([1-9]\d*)(MB|GB)", text)
    if match is None:
        raise InputError(f"--max-shard-size: {text!r} is not a size such as 500MB or 5GB")
    return int(match[1]) * UNITS[match[2]]


def main(argv: Sequence[str]) -> int:
    arguments = parse(argv)
    repo = arguments.push_to_hub
    check_destination(arguments.out)
    trained = TrainedRun.find(arguments.checkpoint)
    release = open_release(trained, arguments.data)
    release.check()
    if repo is not None:
        # What the token may not do is better known before a long export; an outage may be over behind it.
        with suppress(HubUnavailable):
            make_repository(repo, private=arguments.private)

    # transformers takes seconds to import: only what is going to be exported waits for it.
    from pretrain.hf_export import export

    export(
        release,
        arguments.out,
        name=repo or arguments.out.resolve().name,
        loaded_as=repo or str(arguments.out),
        dtype=arguments.dtype,
        max_shard_size=arguments.max_shard_size,
        with_code=arguments.with_code,
        console=Console(stderr=True),
    )
    step = f"{trained.state['step']:,}"
    print(f"exported step {step} of {trained.run_dir} to {arguments.out}")
    if repo is not None:
        size = sum(path.stat().st_size for path in arguments.out.iterdir())
        print(f"uploading {size / 1e6:,.1f} MB to {repo}", flush=True)
        print(upload_folder(arguments.out, repo, "main", private=arguments.private, message=f"Step {step}"))
    return DONE


def check_destination(out: Path) -> None:
    """Raises `InputError` where `out` holds anything but an earlier export, or is where the user is."""
    if out.resolve() == Path.cwd():
        raise InputError(f"--out: {out} is the current folder, which an export would replace; name another")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        ours = json.loads((out / "config.json").read_text())["model_type"] in (MODEL_TYPE, *PERCEIVER_IO_TYPES)
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise InputError(f"--out: {out} exists and is no exported Perceiver AR nor Perceiver IO; choose another folder")


if __name__ == "__main__":
    run_command(main)
