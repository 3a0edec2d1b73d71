"""Files behind URLs, read from a real web server on this machine that does what networks do."""

import gzip
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pretrain.corpus.download import Patience
from pretrain.corpus.sources import remote
from pretrain.corpus.sources.unit import UNIT_BYTES, Document
from pretrain.errors import InputError

TEXT = b"".join(b"line %d of a page\n" % number for number in range(20_000))


class Web(ThreadingHTTPServer):
    """Serves `pages`; `faults` says what happens to the first GETs of a page: ``cut``, ``stall`` or a status."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Page)
        self.pages: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = {}
        self.gets: Counter[str] = Counter()
        self.encodings: dict[str, str] = {}
        self.unsized: set[str] = set()
        self.stalled = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Page(BaseHTTPRequestHandler):
    server: Web

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        web, path = self.server, self.path
        fault = ""
        if self.command == "GET":
            web.gets[path] += 1
            fault = web.faults[path].pop(0) if web.faults.get(path) else ""
        if fault.isdigit() or path not in web.pages:
            self.send_error(int(fault or 404))
            return
        content = web.pages[path]
        self.send_response(200)
        if path not in web.unsized:
            self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hash(content)}"')
        if path in web.encodings:
            self.send_header("Content-Encoding", web.encodings[path])
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(content[: len(content) // 2] if fault else content)
        if fault == "stall":
            self.wfile.flush()
            web.stalled.wait(30)

    do_HEAD = do_GET


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.stalled.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(remote, "PATIENCE", Patience(tries=4, first_delay=0.01, stall_seconds=0.5))
    (tmp_path / "copies").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "copies"))


@pytest.mark.parametrize("faults", [[], ["cut"], ["503"], ["stall"], ["cut", "500", "429"]], ids=str)
def test_a_file_comes_whole_through_faults(web, make_source, read_all, tmp_path, faults):
    web.pages["/d/enwik.gz"] = gzip.compress(TEXT)
    web.faults["/d/enwik.gz"] = list(faults)
    source = make_source("text", root=f"{web.url}/d", pattern="enwik.gz")
    units = source.units()
    (file,) = units[0].files
    assert (file.id, file.path) == ("enwik.gz", f"{web.url}/d/enwik.gz")
    assert (file.bytes, file.version) == (len(web.pages["/d/enwik.gz"]), f'"{hash(web.pages["/d/enwik.gz"])}"')
    began = time.monotonic()
    assert list(source.documents(units[0])) == [Document("enwik.gz", TEXT)]
    assert web.gets["/d/enwik.gz"] == len(faults) + 1
    assert time.monotonic() - began < 10
    assert os.listdir(tmp_path / "copies") == []


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("cut", "cannot be read"),
        ("stall", "stalled, no byte for 0.5 s (tried 4 times)"),
        ("503", "cannot be read"),
        ("403", "access is denied"),
    ],
)
def test_what_never_comes_is_one_line_with_its_url(web, make_source, tmp_path, fault, message):
    web.pages["/a.txt"] = TEXT
    source = make_source("text", root=web.url, pattern="a.txt")
    units = source.units()
    web.faults["/a.txt"] = [fault] * 99
    with pytest.raises(InputError, match=re.escape(f"{web.url}/a.txt: {message}")) as caught:
        list(source.documents(units[0]))
    assert "\n" not in str(caught.value)
    assert web.gets["/a.txt"] == (1 if fault == "403" else remote.PATIENCE.tries)
    assert os.listdir(tmp_path / "copies") == []


def test_a_disk_without_room_for_the_copy(web):
    web.pages["/a.txt"] = TEXT
    reader = [sys.executable, "-B", str(Path(__file__).with_name("read_sources.py"))]
    limited = ["bash", "-c", 'ulimit -f 8; exec "$@"', "bash", *reader]
    source = {"kind": "text", "root": web.url, "pattern": "a.txt"}
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[4])}
    done = subprocess.run(
        limited, env=environment, input=json.dumps({"a": source}), capture_output=True, text=True, timeout=60
    )
    message = rf".*: File too large, for a copy of {web.url}/a\.txt"
    assert re.fullmatch(message, json.loads(done.stdout)["a"]["error"])
    assert web.gets["/a.txt"] == 1


def test_a_file_that_changed_after_it_was_listed_is_not_read(web, make_source):
    web.pages["/a.txt"] = b"as listed"
    source = make_source("text", root=web.url, pattern="a.txt")
    units = source.units()
    web.pages["/a.txt"] = b"another"
    with pytest.raises(InputError, match="7 of 9 bytes"):
        list(source.documents(units[0]))


def test_files_of_unknown_size_are_taken_for_large_ones(web, make_source, read_all):
    """Not read one after the other by one process, nor counted as no work."""
    names = ["a.txt", "b.txt", "c.txt"]
    web.pages |= {f"/{name}": name.encode() for name in names}
    web.unsized |= web.pages.keys() - {"/c.txt"}
    source = make_source("text", root=web.url, pattern=names)
    assert [[file.bytes for file in unit.files] for unit in source.units()] == [[None], [None], [5]]
    assert [unit.expected_bytes for unit in source.units()] == [UNIT_BYTES, UNIT_BYTES, 5]
    assert [document.text for document in read_all(source)] == [name.encode() for name in names]


def test_a_gz_file_that_the_server_declares_encoded_is_still_a_gz_file(web, make_source, read_all):
    web.pages["/a.txt.gz"] = gzip.compress(b"text")
    web.encodings["/a.txt.gz"] = "gzip"
    assert read_all(make_source("text", root=web.url, pattern="a.txt.gz")) == [Document("a.txt.gz", b"text")]


def test_links_of_a_listing_are_matched(web, make_source, read_all):
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["one", "two"]}), buffer)
    names = ["b.parquet", "a.parquet", "c.txt"]
    web.pages["/d/"] = "".join(f'<a href="{name}">{name}</a>\n' for name in names).encode()
    web.pages |= {f"/d/{name}": buffer.getvalue().to_pybytes() for name in names}
    documents = read_all(make_source("parquet", root=f"{web.url}/d/", pattern="*.parquet"))
    assert [d.id for d in documents] == ["a.parquet:1", "a.parquet:2", "b.parquet:1", "b.parquet:2"]


def test_what_is_not_there(web, make_source):
    with pytest.raises(InputError, match=re.escape(f"{web.url}/gone.txt: there is no such file")):
        make_source("text", root=web.url, pattern="gone.txt").units()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        for pattern in ("a.txt", "*.txt"):
            with pytest.raises(InputError, match=re.escape(f"{url}/{pattern}: cannot be read (ClientConnectorError")):
                make_source("text", root=url, pattern=pattern).units()


@pytest.mark.parametrize(("protocol", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_a_protocol_whose_package_is_missing(make_source, monkeypatch, protocol, package):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed, where it is
    with pytest.raises(InputError, match=f"{protocol}://bucket/folder: .*pip install {package}$"):
        make_source("text", root=f"{protocol}://bucket/folder").units()


def test_a_protocol_that_is_none(make_source):
    with pytest.raises(InputError, match="nonsense://bucket: Protocol not known"):
        make_source("text", root="nonsense://bucket").units()


def test_other_file_systems(make_source, read_all):
    system = fsspec.filesystem("memory")
    for name in ("b/2.txt", "1.txt", "b/c/3.txt", "b/4.md"):
        system.pipe(f"/corpus/{name}", name.encode())
    source = make_source("text", root="memory://corpus", pattern=["*.txt", "b/**/*.txt"])
    assert [(d.id, d.text) for d in read_all(source)] == [
        (name, name.encode()) for name in ("1.txt", "b/2.txt", "b/c/3.txt")
    ]
    before = source.units()
    system.pipe("/corpus/1.txt", b"other")
    assert source.units() != before
    here = make_source("text", root=Path(__file__).parent.as_uri(), pattern="*_server.py")
    assert [d.id for d in read_all(here)] == ["hub_server.py"]
