"""Convert a model of krasserm/perceiver-io to a folder that `transformers` loads through `perceiver_ar.hf`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from perceiver_ar.hub import MODEL_TYPE

EXAMPLES = """\
examples:
  python -m perceiver_ar.convert krasserm/perceiver-ar-clm-base models/clm-base
  python -m perceiver_ar.convert downloads/epoch=000-val_loss=2.820.ckpt models/clm --tokenizer xlnet/xlnet-base-cased
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see --help")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m perceiver_ar.convert",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", metavar="SOURCE", help="folder, Lightning .ckpt, or owner/name[@revision] on the Hub")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write; must not exist")
    parser.add_argument(
        "--tokenizer", metavar="NAME", help="`bytes`, or folder or Hub name of a tokenizer, where SOURCE has none"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Raises OSError or ValueError for bad input."""
    arguments = _parse(argv)
    if arguments.out.exists():
        raise ValueError(f"{arguments.out}: exists; choose another folder, or remove it")
    # transformers looks for DeepSpeed as it saves, which warns that it takes the CPU unless it is told to.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # Torch and transformers take seconds to import: mistakes in the arguments are not to wait for them.
    from perceiver_ar.convert.sources import AUDIO, open_source

    source = open_source(arguments.source)
    if source.model_type == MODEL_TYPE:
        raise ValueError(f"{source.name}: is a Perceiver AR of this package already")

    from perceiver_ar.convert.tokenizer import find_tokenizer
    from perceiver_ar.convert.writing import write_folder

    tokenizer = find_tokenizer(source, arguments.tokenizer)
    write_folder(source, tokenizer, arguments.out)
    if tokenizer is None and source.model_type != AUDIO:
        named = f", which was trained with {source.trained_with}" if source.trained_with else ""
        print(f"warning: {source.name}{named}, has no tokenizer: give one as --tokenizer", file=sys.stderr)
    print(f"{arguments.out}: {'symbolic audio' if source.model_type == AUDIO else 'causal language'} model")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        # As in all commands: 1 where the same may do later, 2 for bad input.
        sys.exit(1 if isinstance(error, ConnectionError) else 2)
