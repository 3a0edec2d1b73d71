"""Prepare a corpus: text from its sources, tokenized, shuffled, split and written as token shards."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # A script has its own folder first, where `config` or `evaluate` would shadow other packages' modules.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
from collections.abc import Sequence

from rich.console import Console

from pretrain.console import MEGABYTES, show_progress
from pretrain.corpus.report import print_inspection, print_lengths, print_summary
from pretrain.corpus.stream import check_file, open_corpus
from pretrain.corpus.writing.config import PrepareConfig
from pretrain.corpus.writing.listing import print_listing
from pretrain.corpus.writing.prepare import prepare_corpus
from pretrain.errors import DONE, STOPPED, InputError, run_command
from pretrain.schema import load_yaml, validate

USAGE = """\
prepare.py --config FILE [--dry-run] [key=value ...]
       prepare.py train-tokenizer --config FILE [key=value ...]
       prepare.py inspect DIR [--samples N]
       prepare.py verify DIR"""
EPILOG = """\
examples:
  python pretrain/prepare.py --config configs/corpora/stdlib.yaml
  python pretrain/prepare.py --config configs/corpora/stdlib.yaml --dry-run     what would be read, and written where
  python pretrain/prepare.py --config configs/corpora/stdlib.yaml out=data/small validation_fraction=0.1 processes=8
  python pretrain/prepare.py train-tokenizer --help       the tokenizer a config asks for, from its own sources
  python pretrain/prepare.py inspect data/stdlib          statistics and some documents, decoded
  python pretrain/prepare.py verify data/stdlib           check every file against its hash

The corpus folder appears whole or not at all. What is finished when the command is stopped or killed stays in a hidden
folder beside it: run again, the command goes on from there. The corpus is the same, byte for byte, for any number of
processes and interruptions.

Run again when all is done, it says so. If files of its sources have other times or sizes than when it was prepared, all
of them are read to see whether their text has changed, every time. A corpus that is damaged, or is to have other text,
is prepared again once its folder is removed.

exit codes: 0 done, 2 bad input, 75 stopped by Ctrl-C: run again to go on
"""
TRAINING_EPILOG = """\
example:
  python pretrain/prepare.py train-tokenizer --config FILE tokenizer=data/my.json tokenizer_training.vocab_size=16384

The file's `tokenizer_training` says what to train; what its `tokenizer` names is written.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise InputError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str]) -> int:
    commands = {"inspect": inspect, "verify": verify, "train-tokenizer": train_tokenizer}
    try:
        command = commands.get(argv[0], prepare) if argv else prepare
        return command(argv)
    except OSError as error:  # no permission, no space, a file that went away
        raise InputError(str(error)) from error
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return STOPPED


def prepare(argv: Sequence[str]) -> int:
    parser = _Parser(
        prog="prepare.py",
        usage=USAGE,
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dry-run", action="store_true", help="print the configuration and the sources, write nothing")
    _add_config(parser)
    arguments = parser.parse_intermixed_args(argv)
    config = _load_config(arguments)
    if arguments.dry_run:
        print_listing(config, Console())
        return DONE
    manifest, written = prepare_corpus(config, console=Console(stderr=True))
    print(f"{config.out}: prepared" if written else f"{config.out}: done already, nothing has changed")
    print_summary(manifest, Console())
    print_lengths(open_corpus(config.out), Console())
    return DONE


def train_tokenizer(argv: Sequence[str]) -> int:
    # Imported here: preparing needs none of the libraries.
    from pretrain.corpus.tokenizers import training

    parser = _Parser(
        prog="prepare.py train-tokenizer",
        description=training.__doc__,
        epilog=TRAINING_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=["train-tokenizer"], help=argparse.SUPPRESS)
    _add_config(parser)
    config = _load_config(parser.parse_intermixed_args(argv))
    file = training.train_tokenizer(config, Console(stderr=True))
    print(f"{file}: trained")
    return DONE


def inspect(argv: Sequence[str]) -> int:
    parser = _Parser(prog="prepare.py inspect", description="Print statistics of a corpus and decoded samples.")
    parser.add_argument("inspect", help=argparse.SUPPRESS)
    parser.add_argument("dir", type=Path, metavar="DIR", help="the corpus folder")
    parser.add_argument("--samples", type=_count, default=3, metavar="N", help="documents to decode (default 3)")
    arguments = parser.parse_args(argv)
    print_inspection(open_corpus(arguments.dir), arguments.samples, Console())
    return DONE


def verify(argv: Sequence[str]) -> int:
    parser = _Parser(prog="prepare.py verify", description="Check every file of a corpus against its hash.")
    parser.add_argument("verify", help=argparse.SUPPRESS)
    parser.add_argument("dir", type=Path, metavar="DIR", help="the corpus folder")
    arguments = parser.parse_args(argv)
    files = open_corpus(arguments.dir).manifest.files()
    total = sum(entry.bytes for entry in files.values())
    with show_progress(Console(stderr=True), "verifying", total, MEGABYTES) as advance:
        for name, entry in files.items():
            check_file(arguments.dir / name, entry)
            advance(entry.bytes)
    print(f"{arguments.dir}: {len(files)} files, all hashes hold")
    return DONE


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {text}")
    return int(text)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="a file of configs/corpora/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replaces a field of the file")


def _load_config(arguments: argparse.Namespace) -> PrepareConfig:
    return validate(PrepareConfig, load_yaml(arguments.config, arguments.overrides))


if __name__ == "__main__":
    run_command(main)
