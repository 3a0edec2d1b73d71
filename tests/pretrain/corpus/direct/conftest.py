"""Documents as files that `datasets` reads, and a server to read them from."""

from __future__ import annotations

import gzip
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers

from pretrain.corpus.manifest import SplitEntry
from pretrain.corpus.stream import TokenStream
from pretrain.corpus.writing.shards import ShardWriter

ROW_GROUP = 7


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


@pytest.fixture(scope="session")
def write_files() -> Callable[..., list[Path]]:
    """write_files(folder, files, format) writes the texts of each file; returns the paths, in order of name."""

    def write(folder: Path, files: Sequence[Sequence[str]], format: str, row_group: int = ROW_GROUP) -> list[Path]:
        folder.mkdir(parents=True)
        paths = []
        for number, texts in enumerate(files):
            path = folder / f"part-{number:03d}.{format}"
            lines = "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts))
            table = pa.table({"id": list(range(len(texts))), "text": pa.array(texts, pa.string())})
            if format == "parquet":
                pq.write_table(table, path, row_group_size=row_group)
            elif format == "arrow":
                with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
                    writer.write_table(table, max_chunksize=row_group)
            elif format == "jsonl.gz":
                path.write_bytes(gzip.compress(lines.encode(), mtime=0))
            else:
                path.write_text(lines)
            paths.append(path)
        return paths

    return write


@pytest.fixture(scope="session")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small ByteLevel BPE tokenizer's file."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["abc abcd bcd dcb ab ä€ " * 20], trainer)
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    tokenizer.save(str(path))
    return str(path)


def made_up_texts(rng: random.Random, count: int) -> list[str]:
    """Texts of 0 to some 150 characters, most of them short, some of several bytes a character."""
    lengths = [rng.choice([0, 1, 1, 2, 5, 12, 30, 150]) for _ in range(count)]
    return ["".join(rng.choices("abcd ä€", k=length)) for length in lengths]


@pytest.fixture(scope="session", name="made_up_texts")
def made_up_texts_fixture() -> Callable[[random.Random, int], list[str]]:
    return made_up_texts


@pytest.fixture(scope="session")
def write_documents() -> Callable[[Path, Sequence[np.ndarray]], TokenStream]:
    """Write documents' tokens, end to end, as a stream into a new folder."""

    def write(folder: Path, documents: Sequence[np.ndarray]) -> TokenStream:
        folder.mkdir()
        tokens = sum(map(len, documents))
        writer = ShardWriter(folder, "train", "uint16", tokens)
        for number, document in enumerate(documents):
            writer.add(str(number), document, text_bytes=len(document))
        split = SplitEntry(tokens=tokens, bytes=tokens, documents=len(documents), shards=writer.close(), baselines=None)
        return TokenStream(folder, split, "uint16", tokens)

    return write


class FileServer(ThreadingHTTPServer):
    """Serves the files of a folder, also in ranges, but not when `down`.

    Answers whose numbers are in `cut` are broken off half-way, those in `stall` do not go on for 60 seconds.
    """

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.cut: set[int] = set()
        self.stall: set[int] = set()
        self.answers = 0
        self.down = False
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FileServer

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        if self.server.down:
            self.close_connection = True
            return
        path = self.server.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        whole = path.read_bytes()
        first, last = 0, len(whole) - 1
        if wanted := self.headers.get("Range"):
            given = wanted.removeprefix("bytes=").split("-")
            first, last = int(given[0]), min(int(given[1] or last), last)
        body = whole[first : last + 1]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(whole)}")
        self.end_headers()
        if with_body:
            self.server.answers += 1
            if self.server.answers in self.server.cut:
                self.server.cut.remove(self.server.answers)
                body = body[: len(body) // 2]
                self.close_connection = True
            with suppress(ConnectionError):
                if self.server.answers in self.server.stall:
                    self.server.stall.remove(self.server.answers)
                    self.wfile.write(body[:100])
                    time.sleep(60)
                self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[Path], FileServer]]:
    """serve(folder) -> a running server of its files."""
    servers = []

    def start(folder: Path) -> FileServer:
        server = FileServer(folder)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
