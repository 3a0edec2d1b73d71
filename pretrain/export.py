"""Export a checkpoint as a Hugging Face folder: safetensors, tokenizer, generation config and model card."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script has its own folder first, where `config` or `evaluate` would shadow other packages' modules.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import json
from collections.abc import Sequence

from pretrain.command_line import ArgumentParser
from pretrain.errors import DONE, InputError, run_command
from pretrain.trained_model import TrainedModel

EXAMPLES = """\
  python pretrain/export.py --checkpoint runs/demo --out exports/demo
  python pretrain/export.py --checkpoint runs/demo/checkpoints/step-00001000 --out exports/demo-1000 --dtype bfloat16
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, examples=EXAMPLES)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="DIR", help="a run directory or one of its checkpoints")
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write; an earlier export there is replaced")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights (default: %(default)s)")
    add("--data", nargs="+", metavar="CORPUS", help="the corpora of the run, if they have moved: in the config's order")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    arguments = parse(argv)
    check_destination(arguments.out)
    trained = TrainedModel.find(arguments.checkpoint)
    corpora = trained.corpora(arguments.data)

    # transformers takes seconds to import: only what is going to be exported waits for it.
    from pretrain.hf_export import export

    export(trained, corpora, arguments.out, arguments.dtype)
    print(f"exported step {trained.state['step']:,} of {trained.run_dir} to {arguments.out}")
    return DONE


def check_destination(out: Path) -> None:
    """Raises `InputError` where `out` holds anything but an earlier export."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        ours = json.loads((out / "config.json").read_text())["model_type"] == "perceiver-ar"
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise InputError(f"--out: {out} exists and is no exported Perceiver AR; choose another folder")


if __name__ == "__main__":
    run_command(main)
