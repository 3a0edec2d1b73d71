"""Small corpora written straight into shards, a web server that serves them well or badly, and files of rows."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pretrain.corpus.manifest import FORMAT, VERSION, Manifest, SplitEntry, write_manifest
from pretrain.corpus.stream import TokenStream
from pretrain.corpus.tokenizers import load_tokenizer
from pretrain.corpus.writing.files import write_tokenizer
from pretrain.corpus.writing.shards import ShardWriter


def write_split(folder: Path, name: str, documents: Sequence[np.ndarray], shard_tokens: int, dtype: str) -> SplitEntry:
    writer = ShardWriter(folder, name, dtype, shard_tokens)
    for number, tokens in enumerate(documents):
        writer.add(f"document {number}", tokens, text_bytes=len(tokens))
    tokens = sum(map(len, documents))
    shards = writer.close()
    return SplitEntry(tokens=tokens, bytes=tokens, documents=len(documents), shards=shards, baselines=None)


@pytest.fixture(scope="session")
def write_stream() -> Callable[..., TokenStream]:
    """Write a stream of the given tokens into a new folder, as one document or as documents that end at `ends`."""

    def write(folder: Path, tokens: np.ndarray, shard_tokens: int, ends: Sequence[int] = ()) -> TokenStream:
        folder.mkdir()
        documents = np.split(tokens, ends[:-1])
        return TokenStream(
            folder, write_split(folder, "train", documents, shard_tokens, "uint16"), "uint16", shard_tokens
        )

    return write


@pytest.fixture(scope="session")
def write_corpus() -> Callable[..., Path]:
    """Write documents (arrays of tokens) as a new corpus folder; backwards, they are its validation split."""

    def write(
        folder: Path,
        documents: Sequence[np.ndarray],
        shard_tokens: int,
        dtype: str = "uint16",
        tokenizer: str = "bytes",
    ) -> Path:
        folder.mkdir()
        splits = {
            name: write_split(folder, name, documents[::step], shard_tokens, dtype)
            for name, step in (("train", 1), ("validation", -1))
        }
        loaded = load_tokenizer(tokenizer)
        manifest = Manifest(
            format=FORMAT,
            version=VERSION,
            tokenizer=loaded.name,
            tokenizer_hash=loaded.hash,
            vocab_size=loaded.vocab_size,
            end_id=loaded.end_id,
            dtype=dtype,
            shard_tokens=shard_tokens,
            fingerprint="0",
            inputs="0",
            licence="none",
            sources=[],
            splits=splits,
            tokenizer_files=write_tokenizer(loaded, folder),
            config={},
        )
        write_manifest(manifest, folder)
        return folder

    return write


class FileServer(ThreadingHTTPServer):
    """Serves a folder on localhost, and misbehaves as asked."""

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requested: list[str] = []
        """Names of the files asked for, in order."""
        self.faults: dict[str, list[str]] = defaultdict(list)
        """What goes wrong with the next answers, by file name: cut, stall, 503, wrong bytes, short, long."""
        self.pause = 0.0
        """Seconds between the 16 KiB pieces of an answer."""
        self.closing = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        self.server.requested.append(name)
        path = self.server.folder / name
        faults = self.server.faults[name]
        fault = faults.pop(0) if faults else ""
        if fault == "503" or not path.is_file():
            self.send_error(503 if fault else 404)
            return
        content = path.read_bytes()
        if fault == "wrong bytes":
            content = bytes(255 - byte for byte in content)
        elif fault in ("short", "long"):
            content = content[:-1] if fault == "short" else content + b"0"
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        sent = len(content) // 2 if fault in ("cut", "stall") else len(content)
        for start in range(0, sent, 1 << 14):
            self.wfile.write(content[start : min(start + (1 << 14), sent)])
            time.sleep(self.server.pause)
        if fault == "stall":
            self.server.closing.wait()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[Path], FileServer]]:
    """Serve a folder on localhost until the test ends."""
    servers = []

    def start(folder: Path) -> FileServer:
        server = FileServer(folder)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.closing.set()
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`datasets` in this process leaves what it leaves in a temporary folder."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets-cache"))
        yield


@pytest.fixture(scope="session")
def write_files() -> Callable[..., list[Path]]:
    """write_files(folder, files, format) writes the texts of each file; returns the paths, in order of name."""

    def write(folder: Path, files: Sequence[Sequence[str]], format: str, row_group: int = 7) -> list[Path]:
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
            else:
                compress = {"jsonl.gz": gzip.compress, "jsonl.zst": zstandard.compress}.get(format, bytes)
                path.write_bytes(compress(lines.encode()))
            paths.append(path)
        return paths

    return write
