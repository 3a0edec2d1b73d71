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
from pretrain.corpus.report import print_inspection, print_summary
from pretrain.corpus.stream import check_file, open_corpus
from pretrain.corpus.writing.config import PrepareConfig
from pretrain.corpus.writing.prepare import prepare_corpus
from pretrain.errors import DONE, InputError, run_command
from pretrain.schema import load_yaml, validate

PREPARE_USAGE = "prepare.py --config FILE [key=value ...]"
USAGE = f"{PREPARE_USAGE}\n       prepare.py inspect DIR [--samples N]\n       prepare.py verify DIR"
EPILOG = """\
examples:
  python pretrain/prepare.py --config configs/corpora/stdlib.yaml
  python pretrain/prepare.py --config configs/corpora/stdlib.yaml out=data/small validation_fraction=0.1
  python pretrain/prepare.py inspect data/stdlib     statistics and some documents, decoded
  python pretrain/prepare.py verify data/stdlib      check every file against its hash

The corpus folder appears whole or not at all. Run again with the same inputs, the command says so and is done.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise InputError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str]) -> int:
    commands = {"inspect": inspect, "verify": verify}
    try:
        command = commands.get(argv[0], prepare) if argv else prepare
        return command(argv)
    except OSError as error:  # no permission, no space, a file that went away
        raise InputError(str(error)) from error


def prepare(argv: Sequence[str]) -> int:
    parser = _Parser(
        prog="prepare.py",
        usage=USAGE,
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="a file of configs/corpora/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replaces a field of the file")
    arguments = parser.parse_intermixed_args(argv)
    config = validate(PrepareConfig, load_yaml(arguments.config, arguments.overrides))
    manifest, written = prepare_corpus(config, console=Console(stderr=True))
    print(f"{config.out}: prepared" if written else f"{config.out}: done already, nothing has changed")
    print_summary(manifest, Console())
    return DONE


def inspect(argv: Sequence[str]) -> int:
    parser = _Parser(prog="prepare.py inspect", description="Print statistics of a corpus and decoded samples.")
    parser.add_argument("inspect", help=argparse.SUPPRESS)
    parser.add_argument("dir", type=Path, metavar="DIR", help="the corpus folder")
    parser.add_argument("--samples", type=int, default=3, metavar="N", help="documents to decode (default 3)")
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


if __name__ == "__main__":
    run_command(main)
