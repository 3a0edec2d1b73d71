"""Fetching ahead of the reader into a cache that is smaller than the corpus."""

import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pretrain.corpus import Corpus, ShardCache, TokenStream, open_corpus
from pretrain.corpus.ahead import FetchAhead
from pretrain.corpus.cache import NoRoomError
from pretrain.corpus.download import Patience
from pretrain.errors import InputError

HASTY = Patience(tries=3, first_delay=0.01, stall_seconds=5)
SHARDS = 40
SHARD_TOKENS = 20_000
SHARD_BYTES = 2 * SHARD_TOKENS
TOKENS = np.random.default_rng(0).integers(0, 262, size=SHARDS * SHARD_TOKENS)


@pytest.fixture
def folder(tmp_path, write_corpus) -> Path:
    return write_corpus(tmp_path / "corpus", np.split(TOKENS, range(5000, len(TOKENS), 5000)), SHARD_TOKENS)


@pytest.fixture
def open_with(folder, serve, tmp_path) -> Callable[[int], Corpus]:
    """The corpus by way of a web server and a cache for so many shards and what is small."""
    return lambda shards: open_corpus(
        serve(folder).url, ShardCache(tmp_path / "cache", shards * SHARD_BYTES + 30_000, HASTY)
    )


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def announce(stream: TokenStream, shards: range) -> None:
    starts = np.array(shards) * SHARD_TOKENS
    stream.will_read(starts, starts + SHARD_TOKENS)


def read(stream: TokenStream, shard: int) -> None:
    part = slice(shard * SHARD_TOKENS, (shard + 1) * SHARD_TOKENS)
    assert (stream.read(part.start, part.stop) == TOKENS[part]).all()


def fetched(cache: Path) -> int:
    return len(list(cache.glob("*.bin")))


def file_of(corpus: Corpus, shard: int, split: str = "train") -> str:
    """Its name in the cache."""
    entry = corpus.manifest.splits[split].shards[shard].files[f"{split}-{shard:05d}.bin"]
    return f"{entry.xxh64}-{entry.bytes}.bin"


def test_reading_ahead_goes_on_when_the_cache_is_full(folder, serve, tmp_path):
    server = serve(folder)
    corpus = open_corpus(server.url, ShardCache(tmp_path / "cache", 16 * SHARD_BYTES + 30_000, HASTY))
    stream = corpus.split("train")
    announce(stream, range(SHARDS))
    for shard in range(SHARDS):
        wait_until((tmp_path / "cache" / file_of(corpus, shard)).exists)  # before the reader asks for it
        read(stream, shard)
    assert Counter(name for name in server.requested if name.endswith(".bin")) == {
        f"train-{shard:05d}.bin": 1 for shard in range(SHARDS)
    }


def test_what_is_still_to_be_read_is_not_given_up_for_what_comes_later(open_with, tmp_path):
    corpus = open_with(8)
    stream = corpus.split("train")
    starts = np.array([*range(7), 20, 21, 22, *range(7)]) * SHARD_TOKENS
    stream.will_read(starts, starts + 10)
    for shard in range(7):
        read(stream, shard)
    time.sleep(0.3)
    kept = {path.name for path in (tmp_path / "cache").glob("*.bin")}
    assert kept >= {file_of(corpus, shard) for shard in range(7)}


def test_two_announcements_in_a_row_fetch_no_more_ahead_than_one(open_with, tmp_path):
    stream = open_with(16).split("train")
    announce(stream, range(8))
    announce(stream, range(8, 16))
    wait_until(lambda: fetched(tmp_path / "cache") == 4)
    time.sleep(0.3)
    assert fetched(tmp_path / "cache") == 4, "a quarter of 16"


def test_the_streams_of_a_cache_share_what_it_holds_ahead(open_with, tmp_path):
    corpus = open_with(16)
    streams = [corpus.split(name) for name in ("train", "validation")]
    for stream in streams:
        announce(stream, range(1))
    for stream in streams:
        announce(stream, range(1, SHARDS))
    wait_until(lambda: fetched(tmp_path / "cache") == 4)
    time.sleep(0.3)
    for name in ("train", "validation"):
        assert [(tmp_path / "cache" / file_of(corpus, shard, name)).exists() for shard in range(3)] == [1, 1, 0]


def test_few_shards_are_kept_mapped_where_few_fit(open_with, tmp_path):
    stream = open_with(8).split("train")
    for shard in range(SHARDS):
        read(stream, shard)
    # On Linux a mapping tells that its file has been removed.
    mapped = re.findall(rf"{tmp_path}/cache/\S+\.bin.*", Path("/proc/self/maps").read_text())
    assert len(mapped) == 4, "half of what fits"


@pytest.mark.parametrize("shards", [1, 3])
def test_a_cache_for_fewer_than_four_shards_is_refused(open_with, tmp_path, shards):
    with pytest.raises(InputError, match=r"data\.cache\.max_gib: .* four shards of http"):
        open_with(shards)
    assert not list((tmp_path / "cache").glob("*-*"))


def test_a_cache_for_all_of_a_small_corpus_will_do(tmp_path, write_corpus, serve):
    folder = write_corpus(tmp_path / "small", [TOKENS[:SHARD_TOKENS]], SHARD_TOKENS)
    cache = ShardCache(tmp_path / "cache", 2 * SHARD_BYTES + 30_000, HASTY)
    assert (open_corpus(serve(folder).url, cache).split("train").read(0, 10) == TOKENS[:10]).all()


def test_without_room_the_next_try_waits_for_room():
    tries, releases, room = [], [], threading.Event()

    def fetch(number: int) -> None:
        tries.append(number)
        if number >= 2 and not room.is_set():
            raise NoRoomError

    ahead = FetchAhead(fetch, releases.append, lambda: 4)
    ahead.announce({0: 2, 1: 1, **dict.fromkeys(range(2, 40), 1)})
    wait_until(lambda: len(tries) >= 3)
    time.sleep(0.1)
    assert len(tries) <= 4, "each of two threads has failed once at most"
    ahead.used(0)
    assert not releases, "it is read once more"
    time.sleep(0.1)
    assert len(tries) <= 4
    room.set()
    ahead.used(1)
    assert releases == [1]
    wait_until(lambda: {2, 3, 4} <= set(tries))
    assert max(tries) <= 5, "in order"


def test_what_was_announced_and_passed_over_does_not_count_for_ever():
    tries: list[int] = []
    ahead = FetchAhead(tries.append, lambda number: None, lambda: 2)
    for first in (0, 10, 20):
        ahead.announce(dict.fromkeys(range(first, first + 10), 1))
    for number in range(10, 30):  # one announcement before the last is read, the one before that has been passed over
        wait_until(lambda: number in tries)  # noqa: B023
        ahead.used(number)
