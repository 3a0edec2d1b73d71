"""What preparing a corpus would read and write, without doing it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pretrain.console import print_line
from pretrain.corpus.sources.unit import Unit
from pretrain.corpus.writing.config import PrepareConfig
from pretrain.corpus.writing.folder import work_path
from pretrain.corpus.writing.hashes import hash_inputs
from pretrain.corpus.writing.prepare import count_processes, existing_manifest, load_own_tokenizer
from pretrain.schema import dump_yaml


def print_listing(config: PrepareConfig, console: Console) -> None:
    """Print the configuration with its defaults, what the sources list, the tokenizer, and where the corpus would go.

    Raises:
        InputError: as `prepare_corpus` would before it reads or writes, but a tokenizer may be trained later.
    """
    listings = config.list_units()
    lines = [*_tokenizer_and_output(config, listings), f"processes: {count_processes(config)}"]
    print_line(console, dump_yaml(config.model_dump(mode="json")))
    table = Table("source", "revision", "licence")
    for heading in ("units", "files", "bytes"):
        table.add_column(heading, justify="right")
    for source, units in zip(config.sources, listings, strict=True):
        counts = len(units), sum(len(unit.files) for unit in units), sum(unit.bytes for unit in units)
        table.add_row(source.kind, Text(source.state), Text(source.licence), *(f"{count:,}" for count in counts))
    console.print(table)
    for line in lines:
        print_line(console, line)


def _tokenizer_and_output(config: PrepareConfig, listings: list[list[Unit]]) -> list[str]:
    existing = existing_manifest(config)
    if config.tokenizer_training is not None and not Path(config.tokenizer).exists():
        return [f"tokenizer: {config.tokenizer}, not trained yet: run prepare.py train-tokenizer first"]
    tokenizer = load_own_tokenizer(config)
    about = f"{tokenizer.name}, vocabulary {tokenizer.vocab_size:,}, end token {tokenizer.end_id}"
    if existing is None:
        state = "will be written"
        if work_path(config.out).exists():
            state += f", from the work kept in {work_path(config.out)} as far as it fits"
    elif existing.inputs == hash_inputs(config, listings, tokenizer):
        state = "is done already"
    else:
        state = "exists; files of its sources were touched since, so the texts will be compared"
    return [f"tokenizer: {about}", f"out: {config.out.absolute()} {state}; nothing is written now"]
