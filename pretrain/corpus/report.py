"""What a corpus holds, for people."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pretrain.console import print_line
from pretrain.corpus.manifest import Manifest, SplitEntry
from pretrain.corpus.stream import Corpus, check_file

SAMPLE_CHARACTERS = 400
BAR_CHARACTERS = 30
BLOCKS = "▏▎▍▌▋▊▉█"
"""One to eight eighths of a character."""


def print_summary(manifest: Manifest, console: Console) -> None:
    """Counts of splits and sources, and the baselines of the validation text."""
    table = Table("split", title=Text(f"tokenizer {manifest.tokenizer}, vocabulary {manifest.vocab_size:,}"))
    for heading in ("documents", "bytes", "tokens", "bytes per token", "shards"):
        table.add_column(heading, justify="right")
    for name, split in manifest.splits.items():
        counts = f"{split.documents:,}", f"{split.bytes:,}", f"{split.tokens:,}"
        table.add_row(name, *counts, f"{split.bytes / split.tokens:.3f}", str(len(split.shards)))
    console.print(table)
    for source in manifest.sources:
        text = f"{source.documents:,} documents of {source.files:,} files, {source.duplicates:,} duplicates left out"
        about = ", ".join(part for part in (source.kind, source.revision, f"licence {source.licence}") if part)
        print_line(console, f"source {about}: {text}")
    print_line(console, f"fingerprint {manifest.fingerprint}")
    if baselines := manifest.splits["validation"].baselines:
        whole = baselines.sample_bytes == manifest.splits["validation"].bytes
        sample = "" if whole else f"the first {baselines.sample_bytes:,} bytes of "
        print_line(
            console, f"bits per byte of {sample}the validation text (entropies are empirical, counted on that text):"
        )
        print_line(console, f"  order-0 entropy {baselines.order_0:.3f}")
        print_line(console, f"  order-2 entropy {baselines.order_2:.3f}, given the two bytes before")
        print_line(console, f"  xz -6           {baselines.xz:.3f}")


def print_lengths(corpus: Corpus, console: Console) -> None:
    """Quantiles of the documents' lengths by split, and a histogram of all; takes 40 bytes of memory a document."""
    splits = {name: np.diff(corpus.split(name).document_ends(), prepend=0) for name in corpus.manifest.splits}
    table = Table("tokens per document", *("shortest", "10 %", "median", "90 %", "99 %", "longest"))
    for name, lengths in splits.items():
        table.add_row(name, *(f"{length:,.0f}" for length in np.quantile(lengths, (0, 0.1, 0.5, 0.9, 0.99, 1))))
    console.print(table)
    console.print(_histogram(np.concatenate(list(splits.values()))))


def _histogram(lengths: np.ndarray) -> Table:
    """Bins are powers of two."""
    bins = np.frexp(lengths)[1]  # n for 2^(n-1) to 2^n - 1
    documents, tokens = np.bincount(bins), np.bincount(bins, weights=lengths)
    table = Table(box=None)
    for heading in ("tokens", "documents"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", min_width=BAR_CHARACTERS, no_wrap=True)
    table.add_column("of tokens", justify="right", no_wrap=True)
    for number in range(int(bins.min()), len(documents)):
        count = documents[number]
        between = f"{1 << (number - 1):,} – {(1 << number) - 1:,}"
        table.add_row(between, f"{count:,}", _bar(count / documents.max()), f"{tokens[number] / lengths.sum():.1%}")
    return table


def _bar(share: float) -> str:
    """A bar of `share` of the full length; whatever is not zero shows."""
    whole, eighths = divmod(int(np.ceil(share * BAR_CHARACTERS * len(BLOCKS))), len(BLOCKS))
    return BLOCKS[-1] * whole + (BLOCKS[eighths - 1] if eighths else "")


def print_inspection(corpus: Corpus, samples: int, console: Console) -> None:
    """The summary, lengths of documents, and beginnings of some, decoded, from all over a local corpus's first split.

    Raises:
        InputError: a file is damaged.
    """
    print_summary(corpus.manifest, console)
    print_lengths(corpus, console)
    for id, text in _document_beginnings(corpus, samples):
        console.rule(Text(id), align="left")
        print_line(console, text)


def _document_beginnings(corpus: Corpus, samples: int) -> Iterator[tuple[str, str]]:
    name, split = next(iter(corpus.manifest.splits.items()))
    stream, tokenizer = corpus.split(name), corpus.tokenizer()
    ends = stream.document_ends()
    for number in np.linspace(0, len(ends), min(samples, len(ends)), endpoint=False, dtype=np.int64):
        start = ends[number - 1] if number else 0
        # No token of ours stands for less than a quarter of a character.
        tokens = stream.read(start, min(ends[number], start + 4 * SAMPLE_CHARACTERS))
        yield _document_id(corpus, split, int(number)), tokenizer.decode(tokens)[:SAMPLE_CHARACTERS]


def _document_id(corpus: Corpus, split: SplitEntry, number: int) -> str:
    """Of the split's document `number`, out of the one shard that lists it."""
    for shard in split.shards:
        if number < shard.documents:
            break
        number -= shard.documents
    [(name, entry)] = [(name, entry) for name, entry in shard.files.items() if name.endswith(".ids")]
    check_file(corpus.folder / name, entry)
    id: str = json.loads((corpus.folder / name).read_bytes().splitlines()[number])
    return id
