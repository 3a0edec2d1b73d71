"""A Hugging Face Hub on this machine, as far as models are uploaded to it and loaded from it, with faults on demand."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import urllib.parse
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from typing import Any

TOKEN = "hf_" + "Secret0123456789" * 2
REPO = r"(?P<repo>[^/]+/[^/]+)"
ROUTES = {
    r"POST /api/repos/create": "create",
    r"POST /api/validate-yaml": "validate_card",
    rf"POST /api/models/{REPO}/branch/(?P<revision>[^/]+)": "branch",
    rf"POST /api/models/{REPO}/preupload/(?P<revision>[^/]+)": "preupload",
    rf"POST /api/models/{REPO}/commit/(?P<revision>[^/]+)": "commit",
    rf"POST /{REPO}\.git/info/lfs/objects/batch": "batch",
    r"PUT /storage/(?P<oid>\w{64})(?:/(?P<part>\d+))?": "store",
    r"POST /storage/(?P<oid>\w{64})/complete": "complete",
    rf"GET /api/models/{REPO}(?:/revision/(?P<revision>[^/]+))?": "info",
    rf"GET /api/models/{REPO}/tree/(?P<revision>[^/]+)(?:/(?P<below>.+))?": "tree",
    rf"(?:GET|HEAD) /{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)": "resolve",
}


@dataclass
class Fault:
    """What happens to the next `times` requests that match `request`, such as ``PUT /storage``.

    `what` is a status to answer with; ``cut``, to read half of the request and hang up; ``lost``, to do what is asked
    and hang up instead of answering.
    """

    request: str
    what: int | str
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Repository:
    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b"*.safetensors filter=lfs\n"}])
    """What each holds."""
    branches: dict[str, int] = field(default_factory=lambda: {"main": 0})
    """To a commit's number."""

    def files(self, revision: str) -> dict[str, bytes] | None:
        names = {sha(number): number for number in range(len(self.commits))} | self.branches
        return self.commits[names[revision]] if revision in names else None


class HubServer:
    """Serves from construction to `close`; tests look into its attributes and change them."""

    def __init__(self) -> None:
        self.token = TOKEN
        """The only one it knows."""
        self.multipart = 1 << 62
        """Objects of more than `multipart` bytes come in parts of so many."""
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        """LFS objects by their sha256."""
        self.parts: dict[str, dict[int, bytes]] = {}
        self.received: Counter[str] = Counter()
        """Bytes that came for each object, whatever became of them."""
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        # The storage is another server, as it is in earnest.
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        self.url, self.storage = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def fault_of(self, request: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and request.startswith(fault.request):
                fault.times -= 1
                return fault
        return None

    def count(self, request: str) -> int:
        return sum(made.startswith(request) for made in self.requests)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *arguments: object) -> None:
        pass

    def _serve(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        request = f"{self.command} {path}"
        with self.hub.lock:
            self.hub.requests.append(request)
            fault = self.hub.fault_of(request)
        size = int(self.headers.get("Content-Length", 0))
        self.body = self.rfile.read(size // 2 if fault and fault.what == "cut" else size)
        self.hangs_up = fault is not None and fault.what in ("cut", "lost")
        if oid := re.match(r"PUT /storage/(\w{64})", request):
            self.hub.received[oid[1]] += len(self.body)
        if fault is not None and isinstance(fault.what, int):
            # An answer that quotes the request, as proxies' pages of errors do: nobody must repeat it.
            said = {"error": f"injected for {self.headers.get('Authorization')}"}
            self.reply(fault.what, said, fault.headers)
        elif fault is None or fault.what == "lost":
            with self.hub.lock:
                self.answer(request)
        self.close_connection |= self.hangs_up

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def answer(self, request: str) -> None:
        matches = ((re.fullmatch(pattern, request), name) for pattern, name in ROUTES.items())
        match, name = next(((match, name) for match, name in matches if match), (None, ""))
        if match is None:
            self.reply(404, {"error": f"no such page: {request}"})
            return
        place = match.groupdict()
        writes = self.command in ("POST", "PUT") and name not in ("validate_card", "store", "complete")
        repository = self.hub.repositories.get(place.get("repo", ""))
        if (writes or (repository and repository.private)) and not self.is_allowed():
            self.reply(401, {"error": "Invalid credentials in Authorization header"})
        elif "repo" in place and repository is None:
            self.reply(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif name not in ("info", "branch") and "revision" in place and repository.files(place["revision"]) is None:
            self.reply(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        else:
            getattr(self, name)(**({"repository": repository} if repository else {}) | place)

    def is_allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    # What is written.

    def create(self) -> None:
        wish = json.loads(self.body)
        name = f"{wish['organization']}/{wish['name']}"
        known = name in self.hub.repositories
        self.hub.repositories.setdefault(name, Repository(wish.get("visibility") == "private"))
        self.reply(409 if known else 200, {"url": f"{self.hub.url}/{name}", "name": name})

    def validate_card(self) -> None:
        self.reply(200, {"warnings": [], "errors": []})

    def branch(self, repository: Repository, revision: str, **_: str) -> None:
        known = revision in repository.branches
        repository.branches.setdefault(revision, repository.branches["main"])
        self.reply(409 if known else 200, {})

    def preupload(self, repository: Repository, revision: str, **_: str) -> None:
        here = repository.files(revision)
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if is_large(file["path"]) else "regular",
                "shouldIgnore": False,
                **({"oid": oid_of(file["path"], here[file["path"]])} if file["path"] in here else {}),
            }
            for file in json.loads(self.body)["files"]
        ]
        self.reply(200, {"files": files})

    def batch(self, **_: Any) -> None:
        self.reply(200, {"transfer": "basic", "objects": [self.upload_of(o) for o in json.loads(self.body)["objects"]]})

    def upload_of(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """How to send an object; no way at all for what is here."""
        oid, size, step = wanted["oid"], wanted["size"], self.hub.multipart
        answer = {"oid": oid, "size": size}
        if oid in self.hub.objects:
            return answer
        href = f"{self.hub.storage}/storage/{oid}"
        if size <= step:
            return answer | {"actions": {"upload": {"href": href}}}
        parts = {str(part): f"{href}/{part}" for part in range(1, -(-size // step) + 1)}
        header = {"chunk_size": str(step), **parts}
        return answer | {"actions": {"upload": {"href": f"{href}/complete", "header": header}}}

    def store(self, oid: str, part: str | None) -> None:
        if part is not None:
            self.hub.parts.setdefault(oid, {})[int(part)] = self.body
        elif hashlib.sha256(self.body).hexdigest() == oid:
            self.hub.objects[oid] = self.body
        else:
            self.reply(400, {"error": "other bytes than announced"})
            return
        self.reply(200, {}, {"ETag": f'"{part}"'})

    def complete(self, oid: str) -> None:
        parts = self.hub.parts.pop(oid)
        whole = b"".join(parts[entry["partNumber"]] for entry in json.loads(self.body)["parts"])
        assert hashlib.sha256(whole).hexdigest() == oid
        self.hub.objects[oid] = whole
        self.reply(200, {})

    def commit(self, repository: Repository, revision: str, **_: str) -> None:
        files = dict(repository.files(revision))
        for entry in map(json.loads, self.body.splitlines()):
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        repository.branches[revision] = len(repository.commits)
        repository.commits.append(files)
        name = sha(repository.branches[revision])
        self.reply(200, {"commitUrl": f"{self.hub.url}/owner/name/commit/{name}", "commitOid": name, "success": True})

    # What is read.

    def info(self, repository: Repository, repo: str, revision: str | None) -> None:
        files = repository.files(revision or "main")
        if files is None:
            self.reply(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = [{"rfilename": path} for path in files]
        about = {"_id": "0", "id": repo, "sha": sha_of(repository, revision or "main"), "tags": []}
        self.reply(200, about | {"private": repository.private, "siblings": siblings})

    def tree(self, repository: Repository, revision: str, below: str | None, **_: str) -> None:
        files = repository.files(revision)
        self.reply(200, [entry(path, files[path]) for path in files if path.startswith(below or "")])

    def resolve(self, repository: Repository, revision: str, path: str, **_: str) -> None:
        files = repository.files(revision)
        headers = {"X-Repo-Commit": sha_of(repository, revision)}
        if path not in files:
            self.reply(404, {}, headers | {"X-Error-Code": "EntryNotFound"})
            return
        self.reply(200, files[path], headers | {"ETag": f'"{oid_of(path, files[path])}"'})

    def reply(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        if self.hangs_up:
            return
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in chain((headers or {}).items(), [("Content-Length", str(len(data)))]):
            self.send_header(name, value)
        with suppress(ConnectionError):  # whoever asked has given up
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)


def is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".png"))


def oid_of(path: str, content: bytes) -> str:
    """As Git names a file's content, or LFS a large one's."""
    if is_large(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def entry(path: str, content: bytes) -> dict[str, Any]:
    about: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": oid_of(path, content)}
    return about | ({"lfs": {"oid": about["oid"], "size": len(content), "pointerSize": 130}} if is_large(path) else {})


def sha(number: int) -> str:
    """A commit's name."""
    return hashlib.sha1(str(number).encode()).hexdigest()


def sha_of(repository: Repository, revision: str) -> str:
    return sha(repository.branches[revision]) if revision in repository.branches else revision
