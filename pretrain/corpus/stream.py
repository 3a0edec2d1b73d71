"""A corpus as the trainer reads it: from a local folder, or from any fsspec URL by way of a cache on the node."""

from __future__ import annotations

import functools
import io
import json
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pretrain.corpus.ahead import FetchAhead
from pretrain.corpus.cache import ShardCache, mark_used
from pretrain.corpus.download import download, read_url
from pretrain.corpus.manifest import MANIFEST_FILE, FileEntry, Manifest, ShardEntry, SplitEntry, read_manifest
from pretrain.corpus.tokenizers import Tokenizer, load_saved_tokenizer
from pretrain.corpus.windows import StridedWindows, WindowKind, Windows, make_windows
from pretrain.errors import InputError
from pretrain.files import hash_file

MAPPED_SHARDS = 64
"""Mapped at a time by a stream, at most: each holds two file handles."""
MAPPED_SHARE = 0.5
"""Of the cache: how much a remote stream keeps mapped, at most; two shards in any case. A file that has gone from the
cache takes disk space as long as it is mapped."""
MARK_SECONDS = 1.0
"""A shard in use is marked as used this often; the price is that of two system calls."""
AHEAD_SHARE = 0.25
"""Of the cache: how much all its streams together may have fetched and not yet read; a shard each in any case."""
LEAST_SHARDS = 4
"""A cache must have room for: two that a window across a border reads, one fetched ahead, one that arrives."""
SAME_TIME_SECONDS = 10.0
"""Ranks, and the parts of a mixture, announce what they will read within this time of one another."""


class TokenStream:
    """The tokens of one split, end to end: memory-mapped shards, each one's hash checked when it is first touched.

    With a cache, `location` is a URL and shards are downloaded when they are first touched, or earlier if `will_read`
    has announced them. What is fetched ahead never takes the place of a file that any process has used or announced
    since this stream's last announcement (less `SAME_TIME_SECONDS`), unless the one that used it last has by then read
    all that it announced of it.
    """

    def __init__(
        self, location: Path | str, split: SplitEntry, dtype: str, shard_tokens: int, cache: ShardCache | None = None
    ):
        self.shard_tokens = shard_tokens
        self._location = location
        self._split = split
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._cache = cache
        self._checked: set[str] = set()
        self._announced = 0.0
        mapped = MAPPED_SHARDS
        if cache is not None:
            self._ahead = FetchAhead(self._fetch_ahead, self._release, self._ahead_limit)
            mapped = min(mapped, max(2, self._shards_in(MAPPED_SHARE * cache.max_bytes)))
        self._shard = functools.lru_cache(mapped)(self._map_shard)
        self._ends = functools.lru_cache(MAPPED_SHARDS)(self._read_ends)

    @property
    def is_remote(self) -> bool:
        """Whether `will_read` does anything."""
        return self._cache is not None

    def __len__(self) -> int:
        return self._split.tokens

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop` - 1, int64.

        Raises:
            InputError: a shard is missing or damaged, or cannot be downloaded.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start} to {stop} of a stream of {len(self)}")
        parts = [self._tokens(number)[first:last] for number, first, last in self._parts(start, stop)]
        return parts[0].astype(np.int64) if len(parts) == 1 else np.concatenate([np.empty(0, np.int64), *parts])

    def document_starts(self, start: int, stop: int) -> np.ndarray:
        """Places of the first tokens of the documents that begin behind `start` and before `stop`; int64, ascending.

        Raises:
            InputError: as `read`.
        """
        found = []
        # A document begins where the one before ends, so the end of the token before is what to look for.
        for number, first, last in self._parts(start, max(start, stop - 1)):
            ends = self._ends(number)
            low, high = ends.searchsorted(np.array((first, last)), side="right")
            found.append(ends[low:high] + number * self.shard_tokens)
        return found[0] if len(found) == 1 else np.concatenate([np.empty(0, np.int64), *found])

    def document_ends(self) -> np.ndarray:
        """Places behind the end token of each document, ascending; int64."""
        ends = [self._read_ends(number) + number * self.shard_tokens for number in range(len(self._split.shards))]
        return np.concatenate(ends)

    def document_ids(self) -> list[str]:
        """Where each document came from, in the order of `document_ends`."""
        return [json.loads(line) for shard in self._split.shards for line in self._content(shard, ".ids").splitlines()]

    def will_read(self, starts: np.ndarray, stops: np.ndarray) -> None:
        """Announce reads of tokens `starts[i]` to `stops[i]` - 1, in this order; int64. Remote shards are fetched
        ahead in the background; nothing that goes wrong there is raised here.

        Two announcements may be unread at a time: what is left of those before is taken as passed over.
        """
        if self._cache is None:
            return
        reads = _count_in_order(starts // self.shard_tokens, np.maximum(starts, stops - 1) // self.shard_tokens)
        self._cache.announcing.add(self)
        self._cache.announce(
            self._remote(self._split.shards[number], ".bin") for number in self._ahead.left() | reads.keys()
        )
        self._announced = time.time()
        self._ahead.announce(reads)

    def _parts(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Shards, each with the places in it where the part of `start` to `stop` that it holds begins and ends."""
        while start < stop:
            number, first = divmod(start, self.shard_tokens)
            last = min(first + stop - start, self.shard_tokens)
            yield number, first, last
            start += last - first

    def _tokens(self, number: int) -> np.ndarray:
        shard = self._shard(number)
        if self._cache is not None:
            shard.mark_used()
            self._ahead.used(number)
        return shard.tokens

    def _map_shard(self, number: int) -> _MappedShard:
        return _MappedShard(self._open(self._split.shards[number], ".bin"), self._dtype)

    def _read_ends(self, number: int) -> np.ndarray:
        return np.frombuffer(self._content(self._split.shards[number], ".ends"), dtype="<u8").astype(np.int64)

    def _content(self, shard: ShardEntry, ending: str) -> bytes:
        with self._open(shard, ending) as file:
            return file.read()

    def _open(self, shard: ShardEntry, ending: str) -> BinaryIO:
        if self._cache is not None:
            return self._cache.open(*self._remote(shard, ending))
        name, entry = _file_entry(shard, ending)
        path = Path(self._location) / name
        if name in self._checked:
            _check_size(path, entry)
        else:
            check_file(path, entry)
            self._checked.add(name)
        return path.open("rb")

    def _remote(self, shard: ShardEntry, ending: str) -> tuple[str, FileEntry]:
        name, entry = _file_entry(shard, ending)
        return f"{self._location}/{name}", entry

    def _shards_in(self, size: float) -> int:
        return int(size) // (self.shard_tokens * self._dtype.itemsize)

    def _ahead_limit(self) -> int:
        assert self._cache is not None
        return max(1, self._shards_in(AHEAD_SHARE * self._cache.max_bytes / len(self._cache.announcing)))

    def _release(self, number: int) -> None:
        assert self._cache is not None
        self._cache.release(*self._remote(self._split.shards[number], ".bin"))

    def _fetch_ahead(self, number: int) -> None:
        assert self._cache is not None
        for ending in (".bin", ".ends"):
            url, entry = self._remote(self._split.shards[number], ending)
            self._cache.open(url, entry, unused_since=self._announced - SAME_TIME_SECONDS).close()


class _MappedShard:
    def __init__(self, file: BinaryIO, dtype: np.dtype):
        # A plain view: slices of the memmap class cost several times as much.
        self.tokens = np.memmap(file, dtype=dtype, mode="r").view(np.ndarray)
        self._file = file
        self._marked = time.monotonic()

    def mark_used(self) -> None:
        now = time.monotonic()
        if now - self._marked > MARK_SECONDS:
            self._marked = now
            mark_used(self._file)


class Corpus:
    """What `pretrain/prepare.py` has written."""

    def __init__(self, location: str, folder: Path, manifest: Manifest, cache: ShardCache | None = None):
        self.location = location
        """Local folder or URL."""
        self.folder = folder
        """The folder itself, or the one on this node that holds manifest and tokenizer of a remote corpus."""
        self.manifest = manifest
        self._cache = cache

    def split(self, name: str) -> TokenStream:
        """`train` or `validation`.

        Raises:
            InputError: the corpus has no such split.
        """
        manifest = self.manifest
        if name not in manifest.splits:
            raise InputError(f"corpus {self.location}: has no {name} split, only {', '.join(manifest.splits)}")
        return TokenStream(self.location, manifest.splits[name], manifest.dtype, manifest.shard_tokens, self._cache)

    def training_windows(self, kind: WindowKind, *, context: int, latents: int, key: int, segments: bool) -> Windows:
        """The windows that a run trains on, see `make_windows`."""
        return make_windows(kind, self.split("train"), context=context, latents=latents, key=key, segments=segments)

    def validation_windows(self, *, context: int, latents: int, segments: bool) -> Windows:
        """The windows that a run is validated on: every token of the validation split is a target once."""
        stream = self.split("validation")
        return StridedWindows(stream, context=context, latents=latents, stride=latents, segments=segments)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer the corpus was prepared with.

        Raises:
            InputError: its file is damaged, or makes another tokenizer.
        """
        manifest = self.manifest
        for name, entry in manifest.tokenizer_files.items():
            check_file(self.folder / name, entry)
        tokenizer = load_saved_tokenizer(self.folder, manifest.tokenizer, manifest.end_id)
        if tokenizer.hash != manifest.tokenizer_hash:
            raise InputError(
                f"corpus {self.location}: was prepared with a tokenizer of hash {manifest.tokenizer_hash}, its "
                f"tokenizer files make one of {tokenizer.hash}; remove the folder and prepare it again"
            )
        return tokenizer


def open_corpus(location: str | Path, cache: ShardCache | None = None) -> Corpus:
    """Open a corpus in a local folder or at an fsspec URL (https://, hf://, s3://, ...), which needs a cache.

    The sizes of all files of a local corpus are checked now, hashes when a file is first read.

    Raises:
        InputError: it is missing, half-written, damaged or of another format; the message names the file.
    """
    if "://" in str(location):
        return _open_remote(str(location).rstrip("/"), cache)
    folder = Path(location)
    manifest = read_manifest(folder)
    _check_layout(str(folder), manifest)
    for name, entry in manifest.files().items():
        _check_size(folder / name, entry)
    return Corpus(str(folder), folder, manifest)


def check_file(path: Path, entry: FileEntry) -> None:
    """Compare a file with its entry in the manifest.

    Raises:
        InputError: it is missing, cut or changed.
    """
    _check_size(path, entry)
    if hash_file(path) != entry.xxh64:
        raise InputError(f"{path}: damaged, its hash is not the manifest's; remove the folder and prepare it again")


def _open_remote(url: str, cache: ShardCache | None) -> Corpus:
    if cache is None:
        raise InputError(f"data.cache: the corpus {url} is remote, name a folder of this node to keep its shards in")
    content = read_url(f"{url}/{MANIFEST_FILE}", cache.patience)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, MANIFEST_FILE).write_bytes(content)
        try:
            manifest = read_manifest(Path(folder))
        except InputError as error:
            raise InputError(str(error).replace(folder, url)) from None
    _check_layout(url, manifest)
    files = {MANIFEST_FILE: content}
    for name, entry in manifest.tokenizer_files.items():
        target = io.BytesIO()
        download(f"{url}/{name}", entry, target, cache.patience)
        files[name] = target.getvalue()
    _check_room(url, manifest, sum(map(len, files.values())), cache)
    return Corpus(url, cache.keep(files), manifest, cache)


def _check_room(url: str, manifest: Manifest, kept: int, cache: ShardCache) -> None:
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    sizes = [sum(_file_entry(shard, ending)[1].bytes for ending in (".bin", ".ends")) for shard in shards]
    needed = kept + sum(sorted(sizes)[-LEAST_SHARDS:])
    if needed > cache.max_bytes:
        raise InputError(
            f"data.cache.max_gib: {cache.max_bytes} bytes cannot hold four shards of {url} and its manifest, {needed} "
            "bytes; raise it"
        )


def _check_layout(location: str, manifest: Manifest) -> None:
    """What reading relies on beyond the schema. A manifest from elsewhere must not name files outside its folder."""
    for name, entry in manifest.files().items():
        if Path(name).name != name or not re.fullmatch("[0-9a-f]{16}", entry.xxh64):
            raise InputError(
                f"{location}/{MANIFEST_FILE}: damaged, {name!r} with hash {entry.xxh64!r} is no shard file"
            )
    itemsize = np.dtype(manifest.dtype).itemsize
    for split in manifest.splits.values():
        lengths = [manifest.shard_tokens] * (len(split.shards) - 1)
        lengths.append(split.tokens - sum(lengths))
        for shard, tokens in zip(split.shards, lengths, strict=True):
            name, entry = _file_entry(shard, ".bin")
            if shard.tokens != tokens or entry.bytes != tokens * itemsize:
                raise InputError(
                    f"{location}/{name}: the manifest gives it {entry.bytes} bytes and {shard.tokens} tokens, but as "
                    f"{manifest.dtype} the split needs {tokens} tokens in {tokens * itemsize} bytes here; "
                    "remove the folder and prepare it again"
                )


def _count_in_order(first: np.ndarray, last: np.ndarray) -> dict[int, int]:
    """How often a number lies in the ranges `first[i]` to `last[i]`, in the order in which they come up."""
    lengths = (last - first + 1).ravel()
    begins = np.cumsum(lengths) - lengths
    numbers = np.arange(lengths.sum()) + np.repeat(first.ravel() - begins, lengths)
    found, places, counts = np.unique(numbers, return_index=True, return_counts=True)
    order = places.argsort()
    return dict(zip(found[order].tolist(), counts[order].tolist(), strict=True))


def _file_entry(shard: ShardEntry, ending: str) -> tuple[str, FileEntry]:
    [found] = [(name, entry) for name, entry in shard.files.items() if name.endswith(ending)]
    return found


def _check_size(path: Path, entry: FileEntry) -> None:
    if not path.is_file():
        raise InputError(f"{path}: missing from the corpus; remove the folder and prepare it again")
    if (size := path.stat().st_size) != entry.bytes:
        raise InputError(
            f"{path}: has {size} bytes, the manifest says {entry.bytes}; remove the folder and prepare it again"
        )
