"""What a prepared corpus holds: the texts, each once, on one side, in an order that only their hashes decide."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import xxhash
from rich.console import Console

from pretrain import console as console_module
from pretrain.corpus import open_corpus
from pretrain.corpus.report import print_inspection
from pretrain.corpus.writing import prepare
from pretrain.corpus.writing.config import PrepareConfig
from pretrain.corpus.writing.listing import print_listing
from pretrain.corpus.writing.prepare import WorkSizes, prepare_corpus
from pretrain.errors import InputError
from pretrain.schema import validate

FRACTION = 0.2
SHARD_TOKENS = 2048


def shard_files(documents: Sequence[tuple[str, bytes]], deduplicate: bool) -> dict[str, bytes]:
    """What the folder must hold for the documents in listing order, computed all at once: names and contents."""
    kept: list[tuple[bytes, str, bytes]] = []
    seen = set()
    for id, text in documents:
        digest = xxhash.xxh3_128_digest(text)
        if text and not (deduplicate and digest in seen):
            kept.append((digest, id, text))
        seen.add(digest)
    kept.sort(key=lambda document: document[0][8:] + document[0][:8])
    held_out = [int.from_bytes(digest[:8], "big") < int(FRACTION * 2**64) for digest, _, _ in kept]
    files = {}
    for split, side in (("train", False), ("validation", True)):
        chosen = [document for document, held in zip(kept, held_out, strict=True) if held is side]
        ends = np.cumsum([len(text) + 1 for _, _, text in chosen])
        tokens = np.concatenate(
            [np.append(np.frombuffer(text, np.uint8).astype("<u2") + 6, 2) for _, _, text in chosen]
        )
        for number, start in enumerate(range(0, ends[-1], SHARD_TOKENS)):
            inside = np.flatnonzero((ends > start) & (ends <= start + SHARD_TOKENS))
            name = f"{split}-{number:05d}"
            files[f"{name}.bin"] = tokens[start : start + SHARD_TOKENS].astype("<u2").tobytes()
            files[f"{name}.ends"] = (ends[inside] - start).astype("<u8").tobytes()
            files[f"{name}.ids"] = "".join(json.dumps(chosen[i][1]) + "\n" for i in inside).encode()
    return files


@pytest.fixture
def sources(tmp_path, make_texts) -> tuple[list[dict], list[list[tuple[str, bytes]]]]:
    """Configurations of sources, and the documents of each: copies within and across, empty and very long ones, and
    one source twice."""
    texts = make_texts(150)
    groups = [[*texts[:60], "", texts[3], "é" * 20_000], [*texts[50:100], "", *texts[:5]], texts[90:] * 2]
    configs, documents = [], []
    for number, group in enumerate(groups):
        name = f"{number} ü.jsonl"
        (tmp_path / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in group))
        configs.append({"kind": "jsonl", "root": str(tmp_path), "pattern": name})
        documents.append([(f"{name}:{line}", text.encode()) for line, text in enumerate(group, start=1)])
    return [*configs, configs[0]], [*documents, documents[0]]


@pytest.mark.parametrize(
    ("processes", "run", "bucket", "deduplicate"),
    [(1, 5_000, 20_000, True), (1, 10**9, 10**9, False), (2, 30_000, 7_000, False), (4, 5_000, 50_000, True)],
)
def test_shards_are_what_a_sort_of_all_documents_gives(tmp_path, sources, processes, run, bucket, deduplicate):
    configs, documents = sources
    config = {
        "out": str(tmp_path / "corpus"),
        "sources": configs,
        "validation_fraction": FRACTION,
        "deduplicate": deduplicate,
        "shard_mib": SHARD_TOKENS * 2 / 2**20,
        "processes": processes,
    }
    sizes = WorkSizes(run=run, bucket=bucket, process=1)
    manifest, _ = prepare_corpus(validate(PrepareConfig, config), Console(file=io.StringIO()), sizes)
    expected = shard_files([document for group in documents for document in group], deduplicate)
    folder = tmp_path / "corpus"
    assert {path.name for path in folder.iterdir()} == {*expected, "manifest.json"}
    assert [name for name, content in expected.items() if (folder / name).read_bytes() != content] == []
    assert [path.name for path in tmp_path.glob(".*")] == []
    counts = [(source.documents, source.duplicates) for source in manifest.sources]
    kept, all_of_them = [(61, 1), (40, 15), (50, 70), (0, 62)], [(62, 0), (55, 0), (120, 0), (62, 0)]
    assert counts == (kept if deduplicate else all_of_them)


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_decoding_the_shards_gives_the_texts_back(make_corpus, make_texts, read_documents, bpe_file, kind):
    texts = make_texts(60)
    folder = make_corpus(texts, tokenizer="bytes" if kind == "bytes" else bpe_file)
    train, validation = read_documents(folder, "train"), read_documents(folder, "validation")
    assert train and validation
    assert sorted(train + validation) == [(f"{number:04d}.txt", text) for number, text in enumerate(texts)]

    manifest = open_corpus(folder).manifest
    for name, found in (("train", train), ("validation", validation)):
        split = manifest.splits[name]
        assert split.documents == len(found)
        assert split.bytes == sum(len(text.encode()) for _, text in found)
        assert [split.tokens, split.bytes, split.documents] == [
            sum(getattr(shard, field) for shard in split.shards) for field in ("tokens", "bytes", "documents")
        ]
    assert len(manifest.splits["train"].shards) > 3
    assert manifest.vocab_size == (262 if kind == "bytes" else 300)
    assert sum(source.bytes for source in manifest.sources) == sum(split.bytes for split in manifest.splits.values())


def test_a_corpus_with_a_tokenizer_file_stands_alone(make_corpus, make_texts, bpe_file):
    folder = make_corpus(make_texts(20), tokenizer=bpe_file)
    Path(bpe_file).unlink()
    corpus = open_corpus(folder)
    tokenizer = corpus.tokenizer()
    assert tokenizer.decode(tokenizer.encode("def naïve 🐍")) == "def naïve 🐍"
    assert (tokenizer.name, tokenizer.hash) == (bpe_file, corpus.manifest.tokenizer_hash)
    assert (tokenizer.vocab_size, tokenizer.end_id) == (300, corpus.manifest.end_id) == (300, 1)


def test_duplicates_never_straddle(make_corpus, make_texts, read_documents):
    texts = make_texts(40)
    folder = make_corpus(texts * 3, deduplicate=False)
    sides = [{text for _, text in read_documents(folder, split)} for split in ("train", "validation")]
    assert sides[0].isdisjoint(sides[1]) and sides[0] | sides[1] == set(texts)
    assert sum(split.documents for split in open_corpus(folder).manifest.splits.values()) == 120


def test_names_are_not_markup(tmp_path):
    root = tmp_path / "[b]"
    (root / "[").mkdir(parents=True)
    for name in ("[/b] [red]x", "[/link]"):
        (root / name).write_text(f"text of {name}")
    source = {"kind": "text", "root": str(root), "pattern": "**/*", "licence": "[/] A", "revision": "[/] 1"}
    config = {"out": str(tmp_path / "corpus"), "sources": [source]}
    console = Console(file=io.StringIO(), width=300)
    print_listing(validate(PrepareConfig, config), console)
    prepare_corpus(validate(PrepareConfig, config), console)
    print_inspection(open_corpus(tmp_path / "corpus"), 2, console)
    shown = console.file.getvalue()
    assert shown.count("[/] A") == 3 and shown.count("[/] 1") == 3
    assert "\n[/b] [red]x ─" in shown or "\n[/link] ─" in shown


def test_how_much_is_to_be_done_stays_as_it_was_said(tmp_path, make_texts, monkeypatch):
    """Duplicates are known before the texts are tokenized to be so, not where they are."""
    texts = [text * 20 for text in make_texts(100)]
    documents = [*texts, *texts[:40] * 4, "long " * 500_000]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    config = {"out": str(tmp_path / "corpus"), "sources": [{"kind": "jsonl", "root": str(tmp_path)}], "shard_mib": 1}
    monkeypatch.setattr(console_module, "SECONDS_BETWEEN_LINES", 0)
    said = io.StringIO()
    sizes = WorkSizes(run=10**6, bucket=200_000, process=1)
    prepare_corpus(validate(PrepareConfig, config | {"processes": 1}), Console(file=said), sizes)
    for phase in ("tokenizing", "writing"):
        shown = re.findall(rf"{phase}: ([\d.]+) of ([\d.]+) MB", said.getvalue())
        assert len(shown) > 5 and len({total for _, total in shown}) == 1
        assert shown[-1][0] == shown[-1][1]


def test_the_fingerprint_is_of_what_the_corpus_holds(make_corpus, make_texts, bpe_file):
    texts = make_texts(20)
    folders = [
        make_corpus(texts, out="a"),
        make_corpus(["", *texts, texts[2]], out="b"),
        make_corpus([*texts, "one more"], out="c"),
        make_corpus(texts, out="d", tokenizer=bpe_file),
        make_corpus(texts, out="e", shard_mib=1.0),
    ]
    first, same, *others = [open_corpus(folder).manifest.fingerprint for folder in folders]
    assert first == same and len({first, *others}) == 4


def test_the_fingerprint_stays_what_it_was(make_corpus):
    """Runs are resumed, and orders derived, by it: another one must come with another version of the format."""
    folder = make_corpus([f"text number {number}" for number in range(50)])
    assert open_corpus(folder).manifest.fingerprint == "c5b0caf2c59fecf2be9438f43bbfcb85"


def test_of_two_texts_each_side_gets_one(make_corpus, read_documents):
    folder = make_corpus(["one", "two"], validation_fraction=1e-9)
    assert sorted(read_documents(folder, "train") + read_documents(folder, "validation")) == [
        ("0000.txt", "one"),
        ("0001.txt", "two"),
    ]


@pytest.mark.parametrize("texts", [[""], ["", "", ""], ["one"], ["one", "one"]])
def test_an_empty_corpus_is_refused_and_leaves_nothing(make_corpus, tmp_path, texts):
    with pytest.raises(InputError, match="train and validation need at least one"):
        make_corpus(texts)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus-text"]


def test_a_corpus_that_another_process_finishes_meanwhile_is_found(make_corpus, make_texts, monkeypatch):
    hash_inputs = prepare.hash_inputs
    finished = []

    def hash_while_another_prepares(*arguments):
        if not finished:
            finished.append(None)
            folder = make_corpus(make_texts(20))
            finished.append({path: path.stat().st_mtime_ns for path in folder.iterdir()})
        return hash_inputs(*arguments)

    monkeypatch.setattr(prepare, "hash_inputs", hash_while_another_prepares)
    folder = make_corpus(make_texts(20))
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == finished[1]
