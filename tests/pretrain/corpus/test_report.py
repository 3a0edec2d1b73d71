import io
import re
from collections import Counter

import numpy as np
import pytest
from rich.console import Console

from pretrain.corpus import open_corpus
from pretrain.corpus.manifest import SourceEntry
from pretrain.corpus.report import BAR_CHARACTERS, print_inspection, print_lengths, print_summary


def test_the_histogram_counts_every_document_and_token(tmp_path, write_corpus):
    lengths = [1, 2, 3, 4, 7, 8, 100, 127, 128, 1000, *[40] * 30]
    folder = write_corpus(tmp_path / "corpus", [np.zeros(n, dtype=np.int64) for n in lengths], shard_tokens=300)
    console = Console(file=io.StringIO(), width=100)
    print_lengths(open_corpus(folder), console)
    found = {}
    for line in console.file.getvalue().splitlines():
        if match := re.fullmatch(r" *([\d,]+) – ([\d,]+) +([\d,]+) +([▏▎▍▌▋▊▉█]*) +([\d.]+)% *", line):
            low, high, count = (int(text.replace(",", "")) for text in match.group(1, 2, 3))
            assert low.bit_length() == high.bit_length() and high == 2 * low - 1
            found[low] = count, match.group(4), float(match.group(5))
    expected = Counter(1 << (length.bit_length() - 1) for length in lengths for _ in ("train", "validation"))
    assert list(found) == [1 << power for power in range(10)]
    assert {low: count for low, (count, _, _) in found.items() if count} == expected
    assert [low for low, (count, bar, _) in found.items() if bool(count) != bool(bar)] == []
    assert found[32][1] == "█" * BAR_CHARACTERS
    shares = [share for _, _, share in found.values()]
    assert abs(found[512][2] - 100 * 1000 / sum(lengths)) <= 0.05 and abs(sum(shares) - 100) <= 0.5


@pytest.mark.parametrize("samples", [0, 1, 3, 40, 100])
def test_samples_are_shown_with_their_own_ids(tmp_path, write_corpus, samples):
    """Shards of 20 tokens end any number of documents, some of them none."""
    lengths = [1, 2, 3, 4, 50, *[7] * 35]
    documents = [np.full(length, 6 + ord("A") + number) for number, length in enumerate(lengths)]
    folder = write_corpus(tmp_path / "corpus", documents, shard_tokens=20)
    corpus = open_corpus(folder)
    console = Console(file=io.StringIO(), width=100)
    print_inspection(corpus, samples, console)
    found = re.findall(r"^document (\d+) ─+\n(.*)$", console.file.getvalue(), flags=re.MULTILINE)
    numbers = np.linspace(0, 40, min(samples, 40), endpoint=False, dtype=int)
    assert found == [(str(number), chr(ord("A") + number) * lengths[number]) for number in numbers]


def test_names_are_shown_as_they_are(tmp_path, write_corpus):
    folder = write_corpus(tmp_path / "corpus", [np.full(3, 100)], shard_tokens=300)
    manifest = open_corpus(folder).manifest
    name = "[red]data[/]/[link]"
    source = SourceEntry(kind="text", revision=name, licence=name, files=1, documents=1, duplicates=0, bytes=1)
    console = Console(file=io.StringIO(), width=100)
    print_summary(manifest.model_copy(update={"tokenizer": name, "sources": [source]}), console)
    assert console.file.getvalue().count(name) == 3
