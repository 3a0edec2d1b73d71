"""Reading prepared tokens, timed beside other ways to read the same, in turns."""

from __future__ import annotations

import itertools
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset

from pretrain.corpus import (
    Batch,
    BatchReader,
    Corpus,
    MixturePart,
    SampleSequence,
    ShardCache,
    StridedWindows,
    open_corpus,
)
from pretrain.corpus.manifest import FORMAT, VERSION, Manifest, SplitEntry, write_manifest
from pretrain.corpus.tokenizers import load_tokenizer
from pretrain.corpus.writing.shards import ShardWriter

CONTEXT, LATENTS, BATCH = 8192, 1024, 8
SHARD_TOKENS = 1 << 25
RESUME_BATCH, RESUME_SHARDS = 64, 64
"""The first batch after resuming then comes from about as many shards as the shuffle works through at a time."""
READ_AHEAD = 4
PLANNED = 65_536
FAR_SAMPLE = 10**10
FINGERPRINT = "random tokens"
Batches = Iterator[tuple[Any, Any]]
"""(input ids, targets) of `BATCH` windows, without end."""


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def random_tokens(count: int) -> tuple[np.ndarray, np.ndarray]:
    """(count,) uint16 tokens and the places behind their documents, whose lengths are log-normal around 550 tokens."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(6.3, 1.2, size=count // 500)).astype(np.int64) + 1
    ends = np.cumsum(lengths)
    return rng.integers(1 << 16, size=count, dtype=np.uint16), np.append(ends[ends < count], count)


def write_corpus(folder: Path, tokens: np.ndarray, ends: np.ndarray, shard_tokens: int) -> None:
    """A corpus folder with the tokens as its one split, `train`."""
    folder.mkdir()
    writer = ShardWriter(folder, "train", "uint16", shard_tokens)
    for number, document in enumerate(np.split(tokens, ends[:-1])):
        writer.add(str(number), document, text_bytes=2 * len(document))
    split = SplitEntry(
        tokens=len(tokens), bytes=tokens.nbytes, documents=len(ends), shards=writer.close(), baselines=None
    )
    tokenizer = load_tokenizer("bytes")
    manifest = Manifest(
        format=FORMAT,
        version=VERSION,
        tokenizer=tokenizer.name,
        tokenizer_hash=tokenizer.hash,
        vocab_size=1 << 16,
        end_id=tokenizer.end_id,
        dtype="uint16",
        shard_tokens=shard_tokens,
        fingerprint=FINGERPRINT,
        inputs="",
        licence="none",
        sources=[],
        splits={"train": split},
        tokenizer_files={},
        config={},
    )
    write_manifest(manifest, folder)


def write_rows(folder: Path, tokens: np.ndarray) -> None:
    """The tokens as `datasets` reads them: rows of one window each, without overlap, in parquet and arrow."""
    rows = tokens[: len(tokens) // (CONTEXT + 1) * (CONTEXT + 1)]
    offsets = np.arange(0, len(rows) + 1, CONTEXT + 1, dtype=np.int32)
    table = pa.table({"tokens": pa.ListArray.from_arrays(offsets, pa.array(rows))})
    pq.write_table(table, folder / "rows.parquet", row_group_size=256, use_dictionary=False)
    with pa.ipc.new_stream(folder / "rows.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=256)


def windows_of(corpus: Corpus, segments: bool = False) -> StridedWindows:
    stream = corpus.split("train")
    return StridedWindows(stream, context=CONTEXT, latents=LATENTS, stride=LATENTS, segments=segments)


def sequence_of(windows: StridedWindows, parts: int = 1, batch: int = BATCH) -> SampleSequence:
    """One corpus, or a mixture of it with itself."""
    mixed = [MixturePart(str(i), windows, FINGERPRINT, ((0, 1.0 + i),)) for i in range(parts)]
    return SampleSequence(mixed, seed=0, global_batch=batch)


def open_reader(samples: SampleSequence, start_step: int, batch: int = BATCH) -> BatchReader:
    return BatchReader(
        samples,
        global_batch=batch,
        micro_batch=batch,
        rank=0,
        world_size=1,
        start_step=start_step,
        stop_step=start_step + 10**9,
        read_ahead=READ_AHEAD,
    )


def read_ours(corpus: Corpus, closing: ExitStack, segments: bool) -> Batches:
    for step in closing.enter_context(open_reader(sequence_of(windows_of(corpus, segments)), 0)):
        [batch] = step.micro_batches
        assert isinstance(batch, Batch)
        yield batch.input_ids, batch.targets


def window_starts(corpus: Corpus) -> np.ndarray:
    """First token of each window of an epoch, in the order that `read_ours` has."""
    samples = sequence_of(windows_of(corpus))
    tokens = corpus.manifest.splits["train"].tokens
    numbers = samples.plan(np.arange(tokens // LATENTS // BATCH * BATCH)).window
    return np.clip((numbers + 1) * LATENTS - CONTEXT, 0, tokens - CONTEXT - 1)


def read_by_numpy(file: Path, starts: np.ndarray) -> Batches:
    tokens = np.memmap(file, dtype=np.uint16, mode="r")
    for batch in itertools.cycle(starts.reshape(-1, BATCH).tolist()):
        rows = np.empty((BATCH, CONTEXT + 1), dtype=np.int64)
        for row, start in enumerate(batch):
            rows[row] = tokens[start : start + CONTEXT + 1]
        yield rows[:, :-1], rows[:, -LATENTS:]


class MemmapWindows(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """What is usually written for token files."""

    def __init__(self, file: Path, starts: np.ndarray):
        self._tokens = np.memmap(file, dtype=np.uint16, mode="r")
        self._starts = starts

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        start = self._starts[number]
        tokens = torch.from_numpy(self._tokens[start : start + CONTEXT + 1].astype(np.int64))
        return tokens[:-1], tokens[-LATENTS:]


def read_by_data_loader(file: Path, starts: np.ndarray) -> Batches:
    while True:
        yield from DataLoader(MemmapWindows(file, starts), batch_size=BATCH, num_workers=2)


def read_by_datasets(kind: str, file: Path) -> Batches:
    rows = datasets.load_dataset(
        kind, data_files=str(file), split="train", streaming=True, cache_dir=str(file.parent / "cache")
    )
    while True:
        for batch in rows.with_format("numpy").iter(batch_size=BATCH, drop_last_batch=True):
            tokens = torch.from_numpy(np.asarray(batch["tokens"]).astype(np.int64))
            yield tokens[:, :-1], tokens[:, -LATENTS:]


def rate(batches: Batches, seconds: float) -> float:
    """Input tokens read per second."""
    began, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < seconds:
        inputs, _ = next(batches)
        assert inputs.shape == (BATCH, CONTEXT)
        count += BATCH * CONTEXT
    return count / elapsed


def measure_reading(folder: Path, corpus: Corpus, turns: int, seconds: float) -> dict[str, Any]:
    """Million input tokens per second of every way to read, by its name."""
    file, starts = folder / "tokens.bin", window_starts(corpus)
    with ExitStack() as closing:
        # Worker processes first: they are forked, which threads do not survive.
        ways: dict[str, Batches] = {
            "torch DataLoader, 2 worker processes, memmap": read_by_data_loader(file, starts),
            "datasets, streaming parquet": read_by_datasets("parquet", folder / "rows.parquet"),
            "datasets, streaming arrow": read_by_datasets("arrow", folder / "rows.arrow"),
            "numpy, plain copy from a memmap": read_by_numpy(file, starts),
            "BatchReader": read_ours(corpus, closing, segments=False),
            "BatchReader, segments": read_ours(corpus, closing, segments=True),
        }
        for batches in ways.values():
            rate(batches, seconds)
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(turns):
            for way, batches in ways.items():
                rates[way].append(rate(batches, seconds) / 1e6)
    return {way: spread(values) for way, values in rates.items()}


def timed(action: Callable[[], object], times: int) -> list[float]:
    """Seconds of each call."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return seconds


def measure_planning(corpus: Corpus, times: int) -> dict[str, Any]:
    """Per name of a sequence: microseconds per sample in bulk and per call of 8, milliseconds to a far sample."""

    windows = windows_of(corpus)
    windows.stream.read(0, len(windows.stream))  # what is timed is not the check of hashes at the first touch

    def seek(parts: int) -> None:
        samples = sequence_of(windows, parts)
        plan = samples.plan(np.arange(FAR_SAMPLE, FAR_SAMPLE + BATCH))
        for number in zip(plan.source.tolist(), plan.window.tolist(), plan.epoch.tolist(), strict=True):
            samples.window(*number)

    result = {}
    for name, parts in {"one corpus": 1, "a mixture of three": 3}.items():
        samples = sequence_of(windows, parts)
        bulk = np.arange(FAR_SAMPLE, FAR_SAMPLE + PLANNED)
        result[name] = {
            "bulk_us": spread([s / PLANNED * 1e6 for s in timed(lambda: samples.plan(bulk), times)]),  # noqa: B023
            "call_us": spread([s * 1e6 for s in timed(lambda: samples.plan(bulk[:8]), times)]),  # noqa: B023
            "seek_ms": spread([s * 1e3 for s in timed(lambda: seek(parts), times)]),  # noqa: B023
        }
    return result


@dataclass
class Resume:
    """From nothing but the place of a corpus to the first batch of some step."""

    location: str | Path
    cache_folder: Path | None = None
    step: int = 0

    def seconds(self) -> float:
        began = time.perf_counter()
        cache = None if self.cache_folder is None else ShardCache(self.cache_folder, 1 << 40)
        self.step += 12_345
        samples = sequence_of(windows_of(open_corpus(self.location, cache), segments=True), batch=RESUME_BATCH)
        with open_reader(samples, self.step, RESUME_BATCH) as reader:
            next(reader)
            return time.perf_counter() - began


def shards_of_a_batch(corpus: Corpus) -> float:
    """How many shards a batch of `RESUME_BATCH` comes from, on average."""
    windows = windows_of(corpus)
    samples = np.arange(100 * RESUME_BATCH).reshape(100, RESUME_BATCH)
    last_tokens = (sequence_of(windows, batch=RESUME_BATCH).plan(samples).window + 1) * LATENTS
    return statistics.mean(len(np.unique(batch // windows.stream.shard_tokens)) for batch in last_tokens)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The URL at which a web server on this machine, in a process of its own, offers a folder."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        try:
            [port] = re.findall(r"port (\d+)", server.stdout.readline())
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


def fill_cache(folder: Path, url: str) -> None:
    stream = open_corpus(url, ShardCache(folder, 1 << 40)).split("train")
    stream.document_starts(0, len(stream))
    for start in range(0, len(stream), stream.shard_tokens):
        stream.read(start, start + 1)


def measure_resume(folder: Path, times: int) -> dict[str, Any]:
    """Seconds to the first batch, files in the page cache and, for the remote corpus, in the shard cache."""
    corpus, cache_folder = open_corpus(folder), folder.parent / "shard-cache"
    with served(folder) as url:
        fill_cache(cache_folder, url)
        ways = {
            "local folder": Resume(folder),
            "web server on localhost, shards in the cache": Resume(url, cache_folder),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(times + 2):
            for name, resume in ways.items():
                seconds[name].append(resume.seconds())
    return {
        "batch": RESUME_BATCH,
        "shards": len(corpus.manifest.splits["train"].shards),
        "shard_mb": 2e-6 * corpus.manifest.shard_tokens,
        "shards_of_a_batch": shards_of_a_batch(corpus),
    } | {name: spread(values[2:]) for name, values in seconds.items()}


def prepare_reading(folder: Path, tokens: int) -> Corpus:
    """The same random tokens in every form that is read."""
    values, ends = random_tokens(tokens)
    write_corpus(folder / "corpus", values, ends, SHARD_TOKENS)
    write_corpus(folder / "small-shards", values, ends, tokens // RESUME_SHARDS)
    values.tofile(folder / "tokens.bin")
    write_rows(folder, values)
    return open_corpus(folder / "corpus")
