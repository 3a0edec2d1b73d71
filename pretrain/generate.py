"""Continue a prompt with a run's checkpoint, an exported folder or a model of the Hub, printing text as it comes.

Tokens are sampled, unless --greedy or --penalty-alpha asks for another way.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script has its own folder first, where `config` or `evaluate` would shadow other packages' modules.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pretrain.command_line import ArgumentParser
from pretrain.errors import DONE, InputError, run_command
from pretrain.exported_model import ExportedModel, find_model
from pretrain.trained_model import DTYPES, TrainedModel

if TYPE_CHECKING:  # transformers takes seconds to import: bad input is not to wait for it
    from transformers import PreTrainedTokenizerFast

EXAMPLES = """\
  python pretrain/generate.py --checkpoint runs/demo --prompt "def main(" --seed 1
  python pretrain/generate.py --checkpoint exports/demo --prompt-file README.md --greedy --max-new-tokens 500
  git diff | python pretrain/generate.py --checkpoint owner/name@step-1000 --prompt-file - --prompt-lookup 10
"""
INTERRUPTED = 128 + signal.SIGINT
SAMPLING = {"temperature": 0.8, "top_k": 0, "top_p": 0.95}
CANDIDATES = 4
NOT_WITH = {
    "greedy": ("temperature", "top_k", "top_p", "seed", "penalty_alpha"),
    "penalty_alpha": ("temperature", "top_p", "seed", "num_beams", "prompt_lookup", "assistant"),
    "prompt_lookup": ("num_beams", "assistant"),
    "assistant": ("num_beams",),
}
"""Ways of decoding, and the options that they leave nothing to decide for."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, examples=EXAMPLES)
    add = parser.add_argument
    kinds = "a run directory, a checkpoint, an exported folder, or owner/name[@revision] on the Hub"
    add("--checkpoint", required=True, metavar="DIR_OR_MODEL", help=kinds)
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="'' begins a document")
    prompt.add_argument("--prompt-file", metavar="FILE", help="- is standard input")
    add("--max-new-tokens", type=int, default=200, metavar="N", help="default: %(default)s")
    add("--temperature", type=float, metavar="T", help=f"default: {SAMPLING['temperature']}")
    add("--top-k", type=int, metavar="K", help="sample from the K likeliest tokens only; 0 is all (default)")
    add("--top-p", type=float, metavar="P", help=f"... that make up this much probability ({SAMPLING['top_p']})")
    add("--repetition-penalty", type=float, metavar="R", help="above 1 avoids tokens that are in the text (default: 1)")
    add("--seed", type=int, metavar="N", help="sample the same text again (default: another each time)")
    add("--greedy", action="store_true", help="always take the likeliest token")
    add("--num-beams", type=int, metavar="N", help="follow N texts and print the likeliest, at the end")
    contrast = f"contrastive search: how much to avoid repetition, among --top-k tokens ({CANDIDATES})"
    add("--penalty-alpha", type=float, metavar="A", help=contrast)
    lookup = "guess up to N tokens by what followed the same words before: faster where text repeats"
    add("--prompt-lookup", type=int, metavar="N", help=lookup)
    assistant = "a smaller model that guesses tokens, which this one checks: faster, for the same text"
    add("--assistant", metavar="DIR_OR_MODEL", help=assistant)
    add("--num-latents", type=int, metavar="N", help="tokens of the prompt that start as latents (half of max_latents)")
    policy = "what happens once all latents are in use: see docs/generation.md (default: %(default)s)"
    add("--latent-policy", choices=("sliding", "refresh"), default="sliding", help=policy)
    add("--dtype", choices=DTYPES, default="fp32", help="of weights and computation (default: %(default)s)")
    arguments = parser.parse_args(argv)
    check_values(arguments)
    check_combinations(arguments)
    return arguments


def check_values(arguments: argparse.Namespace) -> None:
    """Raises `InputError` for a number that is out of range."""
    limits = {
        "max_new_tokens": (lambda n: n >= 1, "at least 1"),
        "temperature": (lambda t: 0 < t < float("inf"), "greater than 0"),
        "top_k": (lambda k: k >= 0, "at least 0"),
        "top_p": (lambda p: 0 < p <= 1, "greater than 0 and at most 1"),
        "repetition_penalty": (lambda r: 0 < r < float("inf"), "greater than 0"),
        "seed": (lambda n: 0 <= n < 2**32, "from 0 to 4294967295"),
        "num_beams": (lambda n: n >= 2, "at least 2"),
        "penalty_alpha": (lambda a: 0 < a <= 1, "greater than 0 and at most 1"),
        "prompt_lookup": (lambda n: n >= 1, "at least 1"),
        "num_latents": (lambda n: n >= 1, "at least 1"),
    }
    for name, (holds, wanted) in limits.items():
        value = getattr(arguments, name)
        if value is not None and not holds(value):
            raise InputError(f"{option(name)}: must be {wanted}, not {value}")
    if arguments.penalty_alpha is not None and arguments.top_k is not None and arguments.top_k < 2:
        raise InputError("--top-k: contrastive search chooses among at least 2 tokens")


def check_combinations(arguments: argparse.Namespace) -> None:
    """Raises `InputError` for options of which one would go unheard."""
    for way, others in NOT_WITH.items():
        for other in others if getattr(arguments, way) else ():
            if getattr(arguments, other) is not None:
                raise InputError(f"{option(other)}: has no meaning with {option(way)}; leave one of them out")
    for way in ("prompt_lookup", "assistant"):
        if getattr(arguments, way) is not None and arguments.latent_policy != "sliding":
            raise InputError(f"--latent-policy: {option(way)} needs sliding")


def option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def main(argv: Sequence[str]) -> int:
    arguments = parse(argv)
    try:
        prompt = read_prompt(arguments)
        model = find_model(arguments.checkpoint)
        most = model.architecture.max_latents
        if arguments.num_latents is not None and arguments.num_latents > most:
            raise InputError(f"--num-latents: {arguments.num_latents} is more than the model's max_latents ({most})")
        assistant = None if arguments.assistant is None else find_model(arguments.assistant)
        write_continuation(model, assistant, prompt, arguments)
    except KeyboardInterrupt:
        print(flush=True)
        return INTERRUPTED
    return DONE


def read_prompt(arguments: argparse.Namespace) -> str:
    if arguments.prompt is not None:
        return arguments.prompt
    try:
        # Not as text: line ends are the prompt's own.
        standard_input = arguments.prompt_file == "-"
        read = sys.stdin.buffer.read() if standard_input else Path(arguments.prompt_file).read_bytes()
        return read.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not UTF-8 text: {error}"
        raise InputError(f"--prompt-file: cannot read {arguments.prompt_file}: {reason}") from error


def write_continuation(
    model: TrainedModel | ExportedModel,
    assistant: TrainedModel | ExportedModel | None,
    prompt: str,
    arguments: argparse.Namespace,
) -> None:
    """Print the prompt and what the model makes of it, with the help of the `assistant`, if any.

    Raises `InputError` where the model cannot be loaded, or cannot decode in the way asked for.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    tokenizer = model.tokenizer()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # Documents begin behind the end of another one.
    ids = tokenizer.encode(prompt, add_special_tokens=False, verbose=False) or [model.end_id]
    check_room(model, len(ids), arguments.max_new_tokens)
    options = decoding(arguments)
    if assistant is not None:
        check_room(assistant, len(ids), arguments.max_new_tokens)
        if assistant.tokenizer().get_vocab() != tokenizer.get_vocab():
            raise InputError(
                f"--assistant: {assistant.name} has another tokenizer than {model.name}: name one of the same"
            )
        options["assistant_model"] = assistant.hf_model(DTYPES[arguments.dtype]).to(device)  # type: ignore[arg-type]
    hf_model = model.hf_model(DTYPES[arguments.dtype]).to(device)  # type: ignore[arg-type]
    if arguments.seed is not None:
        torch.manual_seed(arguments.seed)

    printer = TextPrinter(tokenizer, prompt)
    if arguments.num_beams is None:
        options["streamer"] = printer
    try:
        [sequence] = hf_model.generate(torch.tensor([ids], device=device), **options)
    except ValueError as error:
        printer.end()
        line, _, _ = str(error).partition("\n")
        raise InputError(f"{model.name}: {line}") from error
    if arguments.num_beams is not None:
        printer.put(sequence[: len(ids)])
        printer.put(sequence[len(ids) :])
        printer.end()


def check_room(model: TrainedModel | ExportedModel, prompt: int, new: int) -> None:
    """Raises `InputError` where learned positions end before so many tokens do."""
    end = model.architecture.max_seq_len
    if model.architecture.learned_positions and prompt + new > end:
        raise InputError(
            f"--max-new-tokens: {new} behind the prompt's {prompt} go beyond the {end} positions that {model.name} has "
            "learned: ask for fewer, or shorten the prompt"
        )


def decoding(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `generate` of the model is called with."""
    options: dict[str, Any] = {
        "max_new_tokens": arguments.max_new_tokens,
        "latent_policy": arguments.latent_policy,
        "do_sample": not arguments.greedy and arguments.penalty_alpha is None,
    }
    if options["do_sample"]:
        given = {name: getattr(arguments, name) for name in SAMPLING}
        options |= {name: SAMPLING[name] if value is None else value for name, value in given.items()}
    if arguments.penalty_alpha is not None:
        options |= {"penalty_alpha": arguments.penalty_alpha, "top_k": arguments.top_k or CANDIDATES}
    if arguments.prompt_lookup is not None:
        options["prompt_lookup_num_tokens"] = arguments.prompt_lookup
    for name in ("num_latents", "num_beams", "repetition_penalty"):
        if (value := getattr(arguments, name)) is not None:
            options[name] = value
    return options


class TextPrinter:
    """A streamer that prints the prompt, whose ids it gets first, then each token as soon as its text is certain."""

    KEPT = 16
    """Ids decoded with new ones: what a token looks like may depend on those before it."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, prompt: str) -> None:
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._ids: list[int] = []
        self._printed = 0
        """Characters of the text of these ids."""

    def put(self, ids: Tensor) -> None:
        is_prompt = not self._ids
        self._ids += ids.flatten().tolist()
        text = self._text()
        # Bytes that are no character yet may become one with the next.
        certain = text.rstrip("\N{REPLACEMENT CHARACTER}")
        print(self._prompt if is_prompt else certain[self._printed :], end="", flush=True)
        self._printed = max(self._printed, len(text if is_prompt else certain))
        if self._printed == len(text) and len(self._ids) > 2 * self.KEPT:
            self._ids = self._ids[-self.KEPT :]
            self._printed = len(self._text())

    def end(self) -> None:
        if self._ids:
            print(self._text()[self._printed :], flush=True)

    def _text(self) -> str:
        return self._tokenizer.decode(self._ids, skip_special_tokens=True)  # type: ignore[return-value]


if __name__ == "__main__":
    run_command(main)
