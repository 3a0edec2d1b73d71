"""The cache of remote shards, against a real web server on localhost that cuts, stalls and lies."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import fsspec
import numpy as np
import pytest
import xxhash

from pretrain.corpus import SampleOrder, ShardCache, StridedWindows, open_corpus
from pretrain.corpus.cache import NoRoomError
from pretrain.corpus.download import Patience
from pretrain.corpus.manifest import FileEntry
from pretrain.errors import BAD_INPUT, InputError, Unavailable

ROOT = Path(__file__).parents[3]
HASTY = Patience(tries=3, first_delay=0.01, stall_seconds=1)
FILE_BYTES = 100_000
SHARD_TOKENS = 100_000
SHARD_BYTES = 2 * SHARD_TOKENS
TOKENS = np.random.default_rng(0).integers(0, 262, size=5 * SHARD_TOKENS + 777)


@pytest.fixture
def folder(tmp_path, write_corpus) -> Path:
    return write_corpus(tmp_path / "corpus", np.split(TOKENS, range(700, len(TOKENS), 700)), SHARD_TOKENS)


@pytest.fixture
def files(tmp_path) -> dict[str, FileEntry]:
    """Files a, b, c, d of 100,000 bytes in a folder to serve."""
    entries = {}
    (tmp_path / "files").mkdir()
    for seed, name in enumerate(("a.bin", "b.bin", "c.bin", "d.bin")):
        content = np.random.default_rng(seed).bytes(FILE_BYTES)
        (tmp_path / "files" / name).write_bytes(content)
        entries[name] = FileEntry(bytes=FILE_BYTES, xxh64=xxhash.xxh64_hexdigest(content))
    return entries


@pytest.fixture
def server(serve, files, tmp_path):
    return serve(tmp_path / "files")


@pytest.fixture
def fetch(server, files) -> Callable[[ShardCache, str], bytes]:
    def fetch(cache: ShardCache, name: str) -> bytes:
        with cache.open(f"{server.url}/{name}", files[name]) as file:
            return file.read()

    return fetch


def partial_files(folder: Path) -> list[Path]:
    return list(folder.rglob("*.partial"))


def start_workers(url: str, cache: Path, max_bytes: int, count: int) -> list[subprocess.Popen]:
    command = [sys.executable, Path(__file__).with_name("cache_worker.py"), url, cache, str(max_bytes)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen([*command, str(seed)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for seed in range(count)
    ]


def finish_workers(workers: list[subprocess.Popen]) -> None:
    expected = xxhash.xxh64_hexdigest(TOKENS.astype(np.int64).tobytes())
    for worker in workers:
        output, errors = worker.communicate(timeout=120)
        assert output.decode().strip() == expected, errors.decode()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def size_of(path: Path) -> int:
    with suppress(FileNotFoundError):  # a failed download goes without the lock
        return 0 if path.is_dir() else path.stat().st_size
    return 0


@contextmanager
def watched(folder: Path, max_bytes: int) -> Iterator[list[int]]:
    """Look at the folder all the time: files are whole whenever they have their name, and the bound holds.

    Yields the sizes of the folder that were seen.
    """
    sizes, problems, stop = [], [], threading.Event()

    def look() -> None:
        while not stop.is_set():
            for path in folder.glob("*.bin"):
                with suppress(FileNotFoundError):  # evicted
                    content = path.read_bytes()
                    if path.name != f"{xxhash.xxh64_hexdigest(content)}-{len(content)}.bin":
                        problems.append(path)
            with (folder / ".lock").open("ab") as lock:  # or a renamed file might be counted twice
                fcntl.flock(lock, fcntl.LOCK_EX)
                sizes.append(sum(map(size_of, folder.rglob("*"))))

    folder.mkdir(exist_ok=True)
    with ThreadPoolExecutor(1) as threads:
        watching = threads.submit(look)
        try:
            yield sizes
        finally:
            stop.set()
    watching.result()
    assert not problems, "a file was visible before it was whole"
    assert sizes and max(sizes) <= max_bytes


def test_four_processes_download_each_file_once_and_none_shows_before_it_is_whole(folder, serve, tmp_path):
    server = serve(folder)
    server.pause = 0.01
    server.faults |= {"train-00001.bin": ["cut"], "train-00002.bin": ["wrong bytes"]}
    with watched(tmp_path / "cache", 10 * SHARD_BYTES):
        finish_workers(start_workers(server.url, tmp_path / "cache", 10 * SHARD_BYTES, 4))
    requested = Counter(name for name in server.requested if name.endswith(".bin"))
    assert requested == {f"train-{number:05d}.bin": 2 if number in (1, 2) else 1 for number in range(6)}
    assert not partial_files(tmp_path / "cache")


def test_the_size_bound_holds_while_three_processes_want_more(folder, serve, tmp_path):
    server = serve(folder)
    server.pause = 0.002
    max_bytes = 4 * SHARD_BYTES + 50_000
    with watched(tmp_path / "cache", max_bytes) as sizes:
        finish_workers(start_workers(server.url, tmp_path / "cache", max_bytes, 3))
    assert max(sizes) > 4 * SHARD_BYTES, "the bound was put to use"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_dies_in_a_download_leaves_nothing_that_matters(folder, serve, tmp_path, how):
    server, cache = serve(folder), tmp_path / "cache"
    server.pause = 0.2
    [worker] = start_workers(server.url, cache, 10 * SHARD_BYTES, 1)
    wait_until(lambda: any(path.stat().st_size == SHARD_BYTES for path in cache.glob("*.bin.partial")))
    worker.send_signal(how)
    worker.communicate(timeout=60)
    assert worker.returncode != 0 and not list(cache.glob("*.bin"))
    assert bool(partial_files(cache)) == (how == signal.SIGKILL)
    server.pause = 0
    finish_workers(start_workers(server.url, cache, 10 * SHARD_BYTES, 1))
    assert not partial_files(cache)


def test_who_waits_for_a_process_that_is_killed_takes_over(folder, serve, tmp_path):
    server, cache = serve(folder), tmp_path / "cache"
    server.pause = 0.2
    [first] = start_workers(server.url, cache, 10 * SHARD_BYTES, 1)
    wait_until(lambda: any(path.stat().st_size == SHARD_BYTES for path in cache.glob("*.bin.partial")))
    second = start_workers(server.url, cache, 10 * SHARD_BYTES, 1)
    wait_until(lambda: server.requested.count("manifest.json") == 2)
    time.sleep(0.3)
    assert len([name for name in server.requested if name.endswith(".bin")]) == 1, "the second waits for the first"
    first.kill()
    first.communicate(timeout=60)
    server.pause = 0
    finish_workers(second)


def test_what_a_killed_process_left_is_not_counted_and_goes(server, files, fetch, tmp_path):
    cache = ShardCache(tmp_path / "cache", FILE_BYTES, HASTY)
    (tmp_path / "cache" / f"{files['a.bin'].xxh64}-{FILE_BYTES}.bin.partial").write_bytes(bytes(FILE_BYTES))
    fetch(cache, "b.bin")
    assert [path.suffix for path in sorted((tmp_path / "cache").glob("*-*"))] == [".bin"]


@pytest.mark.parametrize("fault", ["cut", "stall", "503", "wrong bytes", "short", "long"])
def test_faults_are_tried_again_and_reported_when_they_stay(server, files, fetch, tmp_path, fault):
    patience = Patience(tries=3, first_delay=0.01, stall_seconds=0.4 if fault == "stall" else 10)
    cache = ShardCache(tmp_path / "cache", 1 << 20, patience)
    server.faults["a.bin"] = [fault, fault]
    assert fetch(cache, "a.bin") == (tmp_path / "files" / "a.bin").read_bytes()
    server.faults["b.bin"] = [fault] * 3
    with pytest.raises(Unavailable, match=rf"{server.url}/b\.bin: .*\(tried 3 times\)"):
        fetch(cache, "b.bin")
    assert server.requested == ["a.bin"] * 3 + ["b.bin"] * 3
    assert len(list((tmp_path / "cache").glob("*-*"))) == 1


def test_a_missing_file_and_an_absent_server_are_reported(server, files, tmp_path):
    cache = ShardCache(tmp_path / "cache", 1 << 20, HASTY)
    with pytest.raises(InputError, match=rf"{server.url}/x\.bin: there is no such file") as refused:
        cache.open(f"{server.url}/x.bin", files["a.bin"])
    assert server.requested == ["x.bin"], "asking again would not bring it back"
    assert refused.value.code == BAD_INPUT
    with pytest.raises(Unavailable, match=r"http://127\.0\.0\.1:1/a\.bin: .*tried 3 times"):
        cache.open("http://127.0.0.1:1/a.bin", files["a.bin"])


def test_the_least_recently_used_file_makes_room(server, fetch, tmp_path):
    cache = ShardCache(tmp_path / "cache", 3 * FILE_BYTES, HASTY)
    for name in ("a.bin", "b.bin", "c.bin", "a.bin", "d.bin"):  # the last evicts b
        fetch(cache, name)
        time.sleep(0.02)  # times in the file system are coarse
    for name in ("a.bin", "c.bin", "d.bin"):
        fetch(cache, name)
    assert server.requested == ["a.bin", "b.bin", "c.bin", "d.bin"]
    fetch(cache, "b.bin")
    assert server.requested[4:] == ["b.bin"]


def test_files_announced_or_used_of_late_make_no_room_for_what_is_fetched_ahead(server, files, fetch, tmp_path):
    cache = ShardCache(tmp_path / "cache", 2 * FILE_BYTES, HASTY)
    fetch(cache, "a.bin")
    fetch(cache, "b.bin")
    for path in cache.dir.glob("*.bin"):
        os.utime(path, (0, 0))
    cache.announce([(f"{server.url}/a.bin", files["a.bin"]), (f"{server.url}/d.bin", files["d.bin"])])
    before = time.time() - 60
    cache.open(f"{server.url}/c.bin", files["c.bin"], unused_since=before).close()
    with pytest.raises(NoRoomError):
        cache.open(f"{server.url}/d.bin", files["d.bin"], unused_since=before)
    fetch(cache, "a.bin")
    fetch(cache, "c.bin")
    assert server.requested == ["a.bin", "b.bin", "c.bin"]
    assert len(fetch(cache, "d.bin")) == FILE_BYTES


def test_a_bound_below_one_file_is_refused(server, files, fetch, tmp_path):
    with pytest.raises(InputError, match=r"data\.cache\.max_gib: 99999 bytes cannot hold http.*a\.bin of 100000 bytes"):
        fetch(ShardCache(tmp_path / "cache", FILE_BYTES - 1, HASTY), "a.bin")
    assert not server.requested and not list((tmp_path / "cache").glob("*-*"))


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"data\.cache\.dir: .*file"):
        ShardCache(tmp_path / "file", 1)


def test_a_file_that_rots_in_the_cache_is_fetched_again(server, fetch, tmp_path):
    cache = ShardCache(tmp_path / "cache", 1 << 20, HASTY)
    good = fetch(cache, "a.bin")
    [path] = cache.dir.glob("*.bin")
    path.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    assert fetch(ShardCache(tmp_path / "cache", 1 << 20, HASTY), "a.bin") == good  # as another process does
    assert server.requested == ["a.bin", "a.bin"] and path.read_bytes() == good


def test_an_evicted_shard_stays_readable_for_whoever_has_mapped_it(folder, serve, tmp_path):
    server = serve(folder)
    cache = ShardCache(tmp_path / "cache", 4 * SHARD_BYTES + 20_000, HASTY)
    first, second = (open_corpus(server.url, cache).split("train") for _ in range(2))
    first.read(0, 2 * SHARD_TOKENS)
    asked = len(server.requested)
    assert (second.read(0, len(second)) == TOKENS).all()
    assert len(list(cache.dir.glob("*.bin"))) == 5, "one of the six has gone"
    assert Counter(server.requested[asked:]) == Counter(f"train-{number:05d}.bin" for number in (2, 3, 4, 5))
    asked = len(server.requested)
    assert (first.read(0, 2 * SHARD_TOKENS) == TOKENS[: 2 * SHARD_TOKENS]).all()
    assert len(server.requested) == asked


def test_shards_in_use_are_marked(folder, serve, tmp_path):
    cache = ShardCache(tmp_path / "cache", 1 << 30, HASTY)
    stream = open_corpus(serve(folder).url, cache).split("train")
    stream.read(0, 1)
    [path] = cache.dir.glob("*.bin")
    os.utime(path, (0, 0))
    wait_until(lambda: len(stream.read(0, 1)) == 1 and path.stat().st_mtime > time.time() - 10)


def test_announced_shards_are_fetched_ahead_in_order_and_a_few_at_a_time(folder, serve, tmp_path):
    server = serve(folder)
    cache = ShardCache(tmp_path / "cache", 8 * SHARD_BYTES, HASTY)  # a quarter of it is two shards
    stream = open_corpus(server.url, cache).split("train")
    server.requested.clear()
    starts = np.array([4, 4, 0, 2, 1]) * SHARD_TOKENS
    stream.will_read(starts, starts + 10)

    def shards() -> list[str]:
        return sorted(name for name in server.requested if name.endswith(".bin"))

    wait_until(lambda: len(list(cache.dir.glob("*.ends"))) == 2)
    time.sleep(0.2)
    assert shards() == ["train-00000.bin", "train-00004.bin"]
    stream.read(4 * SHARD_TOKENS, 4 * SHARD_TOKENS + 10)
    wait_until(lambda: len(list(cache.dir.glob("*.ends"))) == 3)
    assert shards() == ["train-00000.bin", "train-00002.bin", "train-00004.bin"]
    stream.read(0, len(stream))
    assert Counter(shards()) == {f"train-{number:05d}.bin": 1 for number in range(6)}


def test_what_goes_wrong_ahead_is_raised_where_it_is_read(folder, serve, tmp_path):
    server = serve(folder)
    stream = open_corpus(server.url, ShardCache(tmp_path / "cache", 1 << 30, HASTY)).split("train")
    (folder / "train-00001.bin").unlink()
    starts = np.arange(3) * SHARD_TOKENS
    stream.will_read(starts, starts + 10)
    wait_until(lambda: "train-00002.bin" in server.requested)
    assert (stream.read(2 * SHARD_TOKENS, 3 * SHARD_TOKENS) == TOKENS[2 * SHARD_TOKENS : 3 * SHARD_TOKENS]).all()
    with pytest.raises(InputError, match=r"train-00001\.bin: there is no such file"):
        stream.read(SHARD_TOKENS, SHARD_TOKENS + 1)


def test_windows_through_the_cache_are_those_of_the_local_corpus_also_after_a_resume(folder, serve, tmp_path):
    server = serve(folder)
    server.faults |= {f"train-{number:05d}.bin": [["cut"], ["stall"], ["503"]][number % 3] for number in range(6)}
    options = {"context": 4096, "latents": 512, "stride": 512, "segments": True}
    local = StridedWindows(open_corpus(folder).split("train"), **options)
    order = SampleOrder(len(local), 7, 64).index(np.arange(2 * len(local)))

    def compare(first: int, last: int, max_bytes: int) -> None:
        cache = ShardCache(tmp_path / "cache", max_bytes, HASTY)
        windows = StridedWindows(open_corpus(server.url, cache).split("train"), **options)
        for start in range(first, last, 200):
            chunk = order[start : min(start + 200, last)]
            windows.will_read(chunk, np.zeros_like(chunk))
            for number in chunk.tolist():
                expected, found = local.window(number), windows.window(number)
                for field in ("input_ids", "targets", "segments"):
                    assert (getattr(expected, field) == getattr(found, field)).all()

    compare(0, 333, 8 * SHARD_BYTES)
    asked = Counter(name for name in server.requested if name.startswith("train-"))
    assert max(asked.values()) <= 2, "once, and once more after the fault"
    compare(333, len(order), 4 * SHARD_BYTES + 50_000)  # the bound may change: less fits now


def test_any_file_system_of_fsspec_will_do(folder, tmp_path):
    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe(f"/cache-test/{path.name}", path.read_bytes())
    corpus = open_corpus("memory://cache-test", ShardCache(tmp_path / "cache", 1 << 30, HASTY))
    assert (corpus.split("train").read(0, len(TOKENS)) == TOKENS).all()
    memory.rm("/cache-test", recursive=True)
