"""Continue a prompt with an exported model, or with a run's checkpoint, printing text as it comes."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script has its own folder first, where `config` or `evaluate` would shadow other packages' modules.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
from collections.abc import Sequence
from typing import Any

from pretrain.command_line import ArgumentParser
from pretrain.errors import DONE, InputError, run_command
from pretrain.trained_model import TrainedModel

EXAMPLES = """\
  python pretrain/generate.py --model exports/demo --prompt "def main("
  python pretrain/generate.py --model runs/demo --prompt-file README.md --greedy --max-new-tokens 500
  git diff | python pretrain/generate.py --model runs/demo/checkpoints/step-00001000 --prompt-file - --seed 1
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, examples=EXAMPLES)
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="an exported folder, a run directory or a checkpoint")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT")
    prompt.add_argument("--prompt-file", metavar="FILE", help="- is standard input")
    add("--max-new-tokens", type=int, default=200, metavar="N", help="default: %(default)s")
    add("--temperature", type=float, default=0.8, metavar="T", help="default: %(default)s")
    add("--top-k", type=int, default=0, metavar="K", help="sample from the K likeliest tokens only; 0 is all (default)")
    add("--top-p", type=float, default=0.95, metavar="P", help="... that make up this much probability (%(default)s)")
    add("--greedy", action="store_true", help="always take the likeliest token")
    add("--seed", type=int, metavar="N", help="sample the same text again (default: another each time)")
    arguments = parser.parse_args(argv)
    limits = {
        "--max-new-tokens": (arguments.max_new_tokens >= 1, "at least 1"),
        "--temperature": (0 < arguments.temperature < float("inf"), "greater than 0"),
        "--top-k": (arguments.top_k >= 0, "at least 0"),
        "--top-p": (0 < arguments.top_p <= 1, "greater than 0 and at most 1"),
        "--seed": (arguments.seed is None or 0 <= arguments.seed < 2**32, "from 0 to 4294967295"),
    }
    for name, (holds, wanted) in limits.items():
        if not holds:
            raise InputError(f"{name}: must be {wanted}")
    return arguments


def main(argv: Sequence[str]) -> int:
    arguments = parse(argv)
    prompt = read_prompt(arguments)
    exported = (arguments.model / "config.json").is_file()
    model = arguments.model if exported else TrainedModel.find(arguments.model)

    # transformers takes seconds to import: only what is going to generate waits for it.
    from transformers import TextStreamer, set_seed

    generator = text_generator(model)
    if arguments.seed is not None:
        set_seed(arguments.seed)
    sampling = dict(temperature=arguments.temperature, top_k=arguments.top_k, top_p=arguments.top_p)
    generator(
        prompt,
        max_new_tokens=arguments.max_new_tokens,
        do_sample=not arguments.greedy,
        streamer=TextStreamer(generator.tokenizer, skip_special_tokens=True),
        **({} if arguments.greedy else sampling),
    )
    return DONE


def read_prompt(arguments: argparse.Namespace) -> str:
    if arguments.prompt is not None:
        return arguments.prompt
    try:
        if arguments.prompt_file == "-":
            return sys.stdin.read()
        return Path(arguments.prompt_file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--prompt-file: cannot read {arguments.prompt_file} as UTF-8 text: {error}") from error


def text_generator(model: Path | TrainedModel) -> Any:
    """A text-generation pipeline of an exported folder or of a checkpoint.

    Raises `InputError` where the folder holds no model that transformers can load.
    """
    from transformers import pipeline
    from transformers.utils import logging

    import perceiver_ar.hf  # noqa: F401  (registers the model with transformers)
    from pretrain.hf_export import hf_model, hf_tokenizer

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if isinstance(model, TrainedModel):
        return pipeline("text-generation", model=hf_model(model), tokenizer=hf_tokenizer(model))
    try:
        return pipeline("text-generation", model=str(model))
    except (OSError, ValueError) as error:
        raise InputError(f"--model: cannot load {model}: {str(error).splitlines()[0]}") from error


if __name__ == "__main__":
    run_command(main)
