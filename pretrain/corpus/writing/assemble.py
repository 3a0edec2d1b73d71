"""The third phase: the parts of all buckets, end to end, cut into shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pretrain.corpus.manifest import ShardEntry, SplitEntry
from pretrain.corpus.writing.corpus import split_entry
from pretrain.corpus.writing.shards import Shard
from pretrain.corpus.writing.tokenize import Part, check_part
from pretrain.corpus.writing.units import RESULT, UnitResult, UnitRunner, WorkUnit
from pretrain.corpus.writing.workers import Report

COPIED_TOKENS = 4 << 20
"""At once."""


class PlacedPart(NamedTuple):
    part: Part
    start: int
    """Place of its first token in the split."""
    stop: int


class ShardPlan(NamedTuple):
    folder: Path
    """For the shard; its result goes beside the folder, not into it."""
    split: str
    number: int
    start: int
    """Place of the shard's first token in the split."""
    stop: int
    parts: tuple[PlacedPart, ...]
    """Those with tokens of the shard."""
    dtype: str


class AssembledShard(UnitResult):
    entry: ShardEntry


def assemble(plans: Sequence[ShardPlan], text_bytes: int, runner: UnitRunner) -> dict[str, SplitEntry]:
    """Write the shards, of `text_bytes` of text in all, that are not written yet.

    Returns:
        The splits, in the order of the plans, without baselines.
    """
    tokens = sum(plan.stop - plan.start for plan in plans)
    work = [
        WorkUnit(
            plan.folder.parent / f"{plan.split}-{plan.number:05d}{RESULT}",
            1 + text_bytes * (plan.stop - plan.start) // tokens,
            partial(assemble_shard, plan),
        )
        for plan in plans
    ]
    assembled: dict[str, list[ShardEntry]] = {}
    for plan, shard in zip(plans, runner.finish("writing", work, AssembledShard, text_bytes), strict=True):
        assembled.setdefault(plan.split, []).append(shard.entry)
    return {split: split_entry(shards) for split, shards in assembled.items()}


def plan_shards(
    folder: Path, split: str, parts: Sequence[tuple[Part, int]], dtype: str, shard_tokens: int
) -> Iterator[ShardPlan]:
    """The shards of a split made of the given parts with their numbers of tokens."""
    filled = [(part, tokens) for part, tokens in parts if tokens]
    stops = np.cumsum([tokens for _, tokens in filled])
    placed = [
        PlacedPart(part, stop - tokens, stop) for (part, tokens), stop in zip(filled, stops.tolist(), strict=True)
    ]
    total = placed[-1].stop
    for number, start in enumerate(range(0, total, shard_tokens)):
        stop = min(start + shard_tokens, total)
        first, last = np.searchsorted(stops, start, side="right"), np.searchsorted(stops, stop, side="left")
        yield ShardPlan(folder, split, number, start, stop, tuple(placed[first : last + 1]), dtype)


def assemble_shard(plan: ShardPlan, report: Report) -> AssembledShard:
    shard = Shard(plan.folder, plan.split, plan.number)
    for part, start, stop in plan.parts:
        check_part(part)
        low, high = max(plan.start, start) - start, min(plan.stop, stop) - start
        tokens = np.memmap(part.file(".tokens"), dtype=np.dtype(plan.dtype).newbyteorder("<"), mode="r")
        for copied in range(low, high, COPIED_TOKENS):
            shard.write_tokens(tokens[copied : min(copied + COPIED_TOKENS, high)])
        documents = part.documents()
        first, last = np.searchsorted(documents["end"], [low, high], side="right")
        ids = part.file(".ids").read_bytes().splitlines(keepends=True)[first:last]
        text_bytes = int(documents["text_bytes"][first:last].sum())
        shard.write_documents(documents["end"][first:last] + np.uint64(start) - np.uint64(plan.start), ids, text_bytes)
        report(text_bytes)
    entry = shard.close()
    files = {f"{plan.folder.name}/{name}": file.bytes for name, file in entry.files.items()}
    return AssembledShard(text_bytes=entry.bytes, files=files, entry=entry)
