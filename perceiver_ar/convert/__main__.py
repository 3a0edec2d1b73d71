"""Convert a Perceiver of krasserm/perceiver-io or transformers to a folder that `perceiver_ar.hf` loads; or to one that
`transformers` loads alone."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from perceiver_ar.convert.sources import SourceModel

EXAMPLES = """\
examples:
  python -m perceiver_ar.convert krasserm/perceiver-ar-clm-base models/clm-base
  python -m perceiver_ar.convert downloads/epoch=000-val_loss=2.820.ckpt models/clm --tokenizer xlnet/xlnet-base-cased
  python -m perceiver_ar.convert deepmind/language-perceiver models/mlm
  python -m perceiver_ar.convert models/mlm models/their-mlm --to transformers
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
    parser.add_argument(
        "--to",
        choices=("perceiver_ar", "transformers"),
        default="perceiver_ar",
        help="`transformers`: write its own Perceiver, of SOURCE or of a model of this package that it has",
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
    from perceiver_ar.convert.sources import open_source

    source = open_source(arguments.source)
    back = arguments.to == "transformers"
    if source.model_type == "perceiver" if back else source.is_ours:
        raise ValueError(f"{source.name}: is a model of {'transformers' if back else 'this package'} already")

    from perceiver_ar.convert.card import kind_of
    from perceiver_ar.convert.tokenizer import find_tokenizer
    from perceiver_ar.convert.writing import write_folder, write_transformers_folder

    tokenizer = find_tokenizer(source, arguments.tokenizer)
    (write_transformers_folder if back else write_folder)(source, tokenizer, arguments.out)
    for warning in _warnings(source, tokenizer):
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{arguments.out}: {kind_of(source).title}")


def _warnings(source: SourceModel, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[str]:
    from perceiver_ar.convert.card import reads_text
    from perceiver_ar.convert.images import has_image_processor
    from perceiver_ar.convert.sources import AUDIO
    from perceiver_ar.models.perceiver_config import ImageClassifierConfig

    config = source.architecture
    if tokenizer is None and reads_text(config) and source.model_type != AUDIO:
        named = f", which was trained with {source.trained_with}" if source.trained_with else ""
        yield f"{source.name}{named}, has no tokenizer: give one as --tokenizer"
    if isinstance(config, ImageClassifierConfig) and not has_image_processor(source.folder):
        yield f"{source.name}: does not say how its images were normalised: see preprocessor_config.json"


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        # As in all commands: 1 where the same may do later, 2 for bad input.
        sys.exit(1 if isinstance(error, ConnectionError) else 2)
