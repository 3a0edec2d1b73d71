"""The text of data sets over connections that break, stall or are refused."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pretrain.corpus.direct.config import StreamConfig
from pretrain.corpus.sources import streamed_text
from pretrain.corpus.sources.streamed_text import StreamedText
from pretrain.corpus.sources.unit import Document
from pretrain.errors import InputError

pytestmark = pytest.mark.usefixtures("own_cache")

TEXTS = [f"text {i} é" * (i % 5) for i in range(600)]


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
def serve_ranges() -> Iterator[Callable[[Path], FileServer]]:
    """serve_ranges(folder) -> a running server of its files."""
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


def read(text):
    return [content.decode() for rows in text.rows(0) for content in rows.texts]


def open_text(server, path, stop=None):
    kind = "json" if ".jsonl" in path.name else path.suffix[1:]
    return StreamedText(StreamConfig(dataset=kind, data_files=f"{server.url}/{path.name}"), stop)


@pytest.mark.parametrize("format", ["parquet", "arrow", "jsonl", "jsonl.gz", "jsonl.zst"])
def test_a_broken_connection_costs_no_text(tmp_path, write_files, serve_ranges, monkeypatch, format):
    # Several of the ranges of 5 MiB that files are fetched in, also when compressed.
    texts = [random.Random(i).randbytes(25_000).hex() for i in range(400)]
    [path] = write_files(tmp_path / "data", [texts], format, row_group=100)
    monkeypatch.setattr(streamed_text, "RETRY_WAITS", (0,) * 4)
    server = serve_ranges(tmp_path / "data")
    text = open_text(server, path)
    server.answers = 0
    assert read(text) == texts
    assert server.answers >= 2
    for cut in ({1}, {2}, {1, 2, 3, 5}):
        server.answers, server.cut = 0, set(cut)
        assert read(text) == texts
        assert not server.cut


@pytest.mark.parametrize("format", ["jsonl.gz", "jsonl.zst"])
def test_a_prepared_data_set_has_every_row_once(tmp_path, write_files, serve_ranges, monkeypatch, make_source, format):
    texts = [random.Random(i).randbytes(25_000).hex() for i in range(400)]
    [path] = write_files(tmp_path / "data", [texts], format)
    monkeypatch.setattr(streamed_text, "RETRY_WAITS", (0,) * 2)
    server = serve_ranges(tmp_path / "data")
    source = make_source("hub", dataset="json", data_files=f"{server.url}/{path.name}")
    [unit] = source.units()
    assert unit.bytes == path.stat().st_size
    server.answers, server.cut = 0, {2}
    name = "train/00000-of-00001"
    expected = [Document(f"{name}:{number}", text.encode()) for number, text in enumerate(texts, start=1)]
    assert list(source.documents(unit)) == expected
    assert not server.cut


def test_a_transfer_that_stalls_is_begun_again(tmp_path, write_files, serve_ranges, monkeypatch):
    [path] = write_files(tmp_path / "data", [TEXTS], "jsonl")
    monkeypatch.setattr(streamed_text, "STALL_SECONDS", 0.5)
    monkeypatch.setattr(streamed_text, "RETRY_WAITS", (0, 0))
    server = serve_ranges(tmp_path / "data")
    text = open_text(server, path)
    server.answers, server.stall = 0, {1}
    began = time.monotonic()
    assert read(text) == TEXTS
    assert not server.stall and time.monotonic() - began < 30


def test_a_connection_that_stays_broken_is_an_error_at_the_row(tmp_path, write_files, serve_ranges, monkeypatch):
    [path] = write_files(tmp_path / "data", [TEXTS], "jsonl")
    server = serve_ranges(tmp_path / "data")
    text = open_text(server, path)
    monkeypatch.setattr(streamed_text, "RETRY_WAITS", (0, 0))
    server.cut = set(range(1000))
    server.answers = 0
    with pytest.raises(InputError, match=r"part-000\.jsonl, row 0: cannot be reached \(.*\), tried 3 times$"):
        read(text)
    assert server.answers >= 3


def test_waiting_for_a_connection_ends_when_told_to_stop(tmp_path, write_files, serve_ranges, monkeypatch):
    [path] = write_files(tmp_path / "data", [TEXTS], "jsonl")
    server = serve_ranges(tmp_path / "data")
    stop = threading.Event()
    text = open_text(server, path, stop)
    monkeypatch.setattr(streamed_text, "RETRY_WAITS", (600,))
    server.cut = set(range(1000))
    threading.Timer(0.3, stop.set).start()
    began = time.monotonic()
    with pytest.raises(InputError, match="row 0"):
        read(text)
    assert time.monotonic() - began < 60


def test_a_file_that_vanishes_is_refused_at_once(tmp_path, write_files, serve_ranges):
    [path] = write_files(tmp_path / "data", [TEXTS], "parquet")
    server = serve_ranges(tmp_path / "data")
    text = open_text(server, path)
    path.unlink()
    with pytest.raises(InputError, match=r"part-000\.parquet, row 0: cannot be read \(FileNotFoundError"):
        read(text)


def test_a_server_that_is_gone_is_asked_again(tmp_path, write_files, serve_ranges, monkeypatch):
    [path] = write_files(tmp_path / "data", [TEXTS], "parquet")
    server = serve_ranges(tmp_path / "data")
    text = open_text(server, path)
    monkeypatch.setattr(streamed_text, "RETRY_WAITS", (0, 0))
    server.down = True
    with pytest.raises(InputError, match=r"row 0: cannot be reached \(FileNotFoundError: .*\), tried 3 times$"):
        read(text)
