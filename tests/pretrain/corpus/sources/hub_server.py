"""A Hugging Face Hub in a folder, as far as reading from it goes: ``hub_server.py FOLDER`` prints its URL and serves.

``FOLDER/datasets/owner/name/...`` and ``FOLDER/models/owner/name/...`` are the files of repositories of one commit.
"""

import hashlib
import json
import re
import sys
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

API = re.compile(r"/api/(datasets|models)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)(?:/([^/]+)(?:/(.+))?)?)?")
RESOLVE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


def commit_of(repository: Path) -> str:
    digest = hashlib.sha1()
    for path in sorted(repository.rglob("*")):
        digest.update(str(path.relative_to(repository)).encode() + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urllib.parse.urlsplit(self.path)
        path, query = urllib.parse.unquote(url.path), urllib.parse.parse_qs(url.query)
        if match := API.fullmatch(path):
            self.answer_api(*match.groups(), query, body)
        elif match := RESOLVE.fullmatch(path):
            self.send_content(*match.groups())
        else:
            self.reply(404, {"error": f"no such page: {path}"})

    do_HEAD = do_POST = do_GET

    def answer_api(self, kind, name, what, revision, below, query, body) -> None:
        repository = self.repository(kind, name, revision)
        if repository is None:
            return
        files = [path for path in sorted(repository.rglob("*")) if path.is_file()]
        if what in (None, "revision"):
            siblings = [{"rfilename": str(path.relative_to(repository))} for path in files]
            self.reply(200, {"_id": "0", "id": name, "sha": commit_of(repository), "siblings": siblings, "tags": []})
        elif what == "tree":
            folder = repository / (below or "")
            recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            entries = sorted(folder.rglob("*") if recursive else folder.glob("*"))
            if not folder.is_dir():
                self.reply(404, {"error": "no such folder"}, {"X-Error-Code": "EntryNotFound"})
            else:
                self.reply(200, [self.entry(path, repository) for path in entries])
        else:
            wanted = urllib.parse.parse_qs(body.decode()).get("paths") if b"=" in body else json.loads(body)["paths"]
            paths = [repository / path for path in wanted or []]
            self.reply(200, [self.entry(path, repository) for path in paths if path.exists()])

    def entry(self, path: Path, repository: Path) -> dict[str, object]:
        oid = hashlib.sha1(path.read_bytes() if path.is_file() else b"").hexdigest()
        kind, size = ("file", path.stat().st_size) if path.is_file() else ("directory", 0)
        return {"type": kind, "oid": oid, "size": size, "path": str(path.relative_to(repository))}

    def send_content(self, kind, name, revision, file) -> None:
        repository = self.repository(kind or "models", name, revision)
        if repository is None:
            return
        if not (repository / file).is_file():
            self.reply(404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit_of(repository)})
            return
        content = (repository / file).read_bytes()
        headers = {
            "X-Repo-Commit": commit_of(repository),
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "Accept-Ranges": "bytes",
        }
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            self.reply(206, content[first : last + 1], headers)
        else:
            self.reply(200, content, headers)

    def repository(self, kind: str, name: str, revision: str | None) -> Path | None:
        repository = self.root / kind / name
        if not repository.is_dir():
            self.reply(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        if revision not in (None, "main", commit_of(repository)):
            self.reply(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
            return None
        return repository

    def reply(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


if __name__ == "__main__":
    Hub.root = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
