"""What a corpus holds, for people."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rich.console import Console
from rich.table import Table

from pretrain.corpus.manifest import Manifest
from pretrain.corpus.stream import Corpus

SAMPLE_CHARACTERS = 400
BAR_CHARACTERS = 30
BLOCKS = "▏▎▍▌▋▊▉█"
"""One to eight eighths of a character."""


def print_summary(manifest: Manifest, console: Console) -> None:
    """Counts of splits and sources, and the baselines of the validation text."""
    table = Table("split", title=f"tokenizer {manifest.tokenizer}, vocabulary {manifest.vocab_size:,}")
    for heading in ("documents", "bytes", "tokens", "bytes per token", "shards"):
        table.add_column(heading, justify="right")
    for name, split in manifest.splits.items():
        counts = f"{split.documents:,}", f"{split.bytes:,}", f"{split.tokens:,}"
        table.add_row(name, *counts, f"{split.bytes / split.tokens:.3f}", str(len(split.shards)))
    console.print(table)
    for source in manifest.sources:
        text = f"{source.documents:,} documents of {source.files:,} files, {source.duplicates:,} duplicates left out"
        about = ", ".join(part for part in (source.kind, source.revision, f"licence {source.licence}") if part)
        _line(console, f"source {about}: {text}")
    _line(console, f"fingerprint {manifest.fingerprint}")
    if baselines := manifest.splits["validation"].baselines:
        whole = baselines.sample_bytes == manifest.splits["validation"].bytes
        sample = "" if whole else f"the first {baselines.sample_bytes:,} bytes of "
        _line(console, f"bits per byte of {sample}the validation text (entropies are empirical, counted on that text):")
        _line(console, f"  order-0 entropy {baselines.order_0:.3f}")
        _line(console, f"  order-2 entropy {baselines.order_2:.3f}, given the two bytes before")
        _line(console, f"  xz -6           {baselines.xz:.3f}")


def print_lengths(corpus: Corpus, console: Console) -> None:
    """Quantiles of the documents' lengths by split, and a histogram of all; takes 16 bytes a document in memory."""
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
    """The summary, lengths of documents and the beginnings of some, decoded, from all over the first split."""
    print_summary(corpus.manifest, console)
    print_lengths(corpus, console)
    for id, text in _document_beginnings(corpus, samples):
        console.rule(id, align="left")
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _document_beginnings(corpus: Corpus, samples: int) -> Iterator[tuple[str, str]]:
    stream, tokenizer = corpus.split(next(iter(corpus.manifest.splits))), corpus.tokenizer()
    ends, ids = stream.document_ends(), stream.document_ids()
    for number in np.linspace(0, len(ends), min(samples, len(ends)), endpoint=False, dtype=np.int64):
        start = ends[number - 1] if number else 0
        # No token of ours stands for less than a quarter of a character.
        tokens = stream.read(start, min(ends[number], start + 4 * SAMPLE_CHARACTERS))
        yield ids[number], tokenizer.decode(tokens)[:SAMPLE_CHARACTERS]


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
