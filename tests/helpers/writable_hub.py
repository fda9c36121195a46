"""A hub of our own that can be written to, as huggingface.co answers the real client: repositories, branches, commits,
large files in one piece or in parts."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_not-for-anybodys-eyes-91bc"
PART_BYTES = 2000
REPOSITORY = r"(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass
class Repository:
    private: bool
    commits: dict[str, dict[str, bytes]]
    """Commit -> path -> content."""
    branches: dict[str, str]
    messages: list[str] = field(default_factory=list)


@dataclass
class WritableHub:
    """All that is there, and the large files that were sent."""

    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    """SHA-256 -> content."""
    sent: list[str] = field(default_factory=list)
    """Digests of large files whose bytes came, or of their parts."""
    on_large: Callable[[], None] = lambda: None
    """Called before a large file is taken."""
    broken: bool = False
    """Whether all is answered with 500."""
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        repository = self.repositories[name]
        return repository.commits[repository.branches[branch]]

    def commit(self, name: str, branch: str, files: dict[str, bytes], message: str) -> str:
        repository = self.repositories[name]
        text = f"{repository.branches.get(branch)} {message} {sorted(files)} {len(repository.messages)}"
        sha = hashlib.sha1(text.encode()).hexdigest()
        repository.commits[sha], repository.branches[branch] = files, sha
        repository.messages.append(message)
        return sha


class _Handler(BaseHTTPRequestHandler):
    hub: WritableHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def _answer(self) -> None:
        path, _, query = self.path.partition("?")
        body = self._read()
        if self.hub.broken:
            return self._send(500, {"error": "out of order"})
        signed = path.startswith("/large/")  # as addresses of a bucket are: they carry their own leave
        if (signed and query != "signature=abc") or (
            not signed and self.headers.get("Authorization") != f"Bearer {TOKEN}"
        ):
            return self._send(401, {"error": f"Invalid credentials {self.headers.get('Authorization')}"})
        for method, pattern, act in ROUTES:
            if self.command == method and (match := re.fullmatch(pattern, path)):
                return act(self, body, **match.groupdict())
        return self._send(404, {"error": "Not found"}, {"X-Error-Code": "RepoNotFound"})

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # -- what it answers -----------------------------------------------------------------------------------------------

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] == "forbidden":
            return self._send(403, {"error": "You don't have the rights to create a model under this namespace"})
        if name in self.hub.repositories:
            url = f"{self.hub.endpoint}/{name}"
            return self._send(409, {"error": "You already created this model repo", "url": url})
        self.hub.repositories[name] = Repository(asked.get("visibility") == "private", {}, {})
        self.hub.commit(name, "main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return self._send(200, {"url": f"{self.hub.endpoint}/{name}"})

    def branch(self, body: bytes, repo: str, branch: str) -> None:
        branches = self.hub.repositories[repo].branches
        if branch in branches:
            return self._send(409, {"error": "Reference already exists"})
        branches[branch] = branches["main"]
        return self._send(200, {})

    def info(self, body: bytes, repo: str, revision: str) -> None:
        files = self.hub.files(repo, revision)
        sha = self.hub.repositories[repo].branches[revision]
        self._send(200, {"id": repo, "sha": sha, "siblings": [{"rfilename": path} for path in files]})

    def yaml(self, body: bytes) -> None:
        self._send(200, {"warnings": [], "errors": []})

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        there, answer = self.hub.files(repo, revision), []
        for file in json.loads(body)["files"]:
            large = file["path"].endswith(".safetensors")
            content = there.get(file["path"])
            oid = None
            if content is not None:
                oid = hashlib.sha256(content).hexdigest() if large else git_hash(content)
            answer.append(
                {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}
            )
        self._send(200, {"files": answer})

    def batch(self, body: bytes, repo: str) -> None:
        objects = []
        for each in json.loads(body)["objects"]:
            url = f"{self.hub.endpoint}/large/{each['oid']}"
            action: dict[str, Any] = {"href": f"{url}?signature=abc"}
            if each["size"] > PART_BYTES:
                count = -(-each["size"] // PART_BYTES)
                urls = {str(n): f"{url}/{n}?signature=abc" for n in range(1, count + 1)}
                action = {"href": f"{url}?signature=abc", "header": {"chunk_size": str(PART_BYTES), **urls}}
            known = each["oid"] in self.hub.large
            objects.append({**each, **({} if known else {"actions": {"upload": action}})})
        self._send(200, {"transfer": "basic", "objects": objects})

    def whole(self, body: bytes, oid: str) -> None:
        self.hub.on_large()
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.large[oid] = body
        self.hub.sent.append(oid)
        self._send(200, b"")

    def part(self, body: bytes, oid: str, number: str) -> None:
        self.hub.on_large()
        self.hub.parts.setdefault(oid, {})[int(number)] = body
        self.hub.sent.append(oid)
        self._send(200, b"", {"ETag": f'"{number}"'})

    def complete(self, body: bytes, oid: str) -> None:
        content = b"".join(part for _, part in sorted(self.hub.parts.pop(oid).items()))
        assert hashlib.sha256(content).hexdigest() == oid
        self.hub.large[oid] = content
        self._send(200, {"success": True})

    def commit(self, body: bytes, repo: str, revision: str) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") != self.hub.repositories[repo].branches[revision]:
            return self._send(412, {"error": "A commit has happened since. Please refresh and try again."})
        files = dict(self.hub.files(repo, revision))
        for line in lines[1:]:
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.large[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        sha = self.hub.commit(repo, revision, files, header["summary"])
        url = f"{self.hub.endpoint}/{repo}/commit/{sha}"
        return self._send(200, {"success": True, "commitUrl": url, "commitOid": sha})

    def resolve(self, body: bytes, repo: str, revision: str, path: str) -> None:
        sha = self.hub.repositories[repo].branches.get(revision, revision)
        content = self.hub.repositories[repo].commits[sha].get(path)
        if content is None:
            return self._send(404, {}, {"X-Error-Code": "EntryNotFound"})
        etag = {"ETag": f'"{git_hash(content)}"', "X-Repo-Commit": sha}
        return self._send(200, content, etag)


ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", rf"/api/models/{REPOSITORY}/branch/(?P<branch>[^/]+)", _Handler.branch),
    ("GET", rf"/api/models/{REPOSITORY}/revision/(?P<revision>[^/]+)", _Handler.info),
    ("POST", "/api/validate-yaml", _Handler.yaml),
    ("POST", rf"/api/models/{REPOSITORY}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", rf"/{REPOSITORY}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", "/large/(?P<oid>[0-9a-f]{64})", _Handler.whole),
    ("PUT", r"/large/(?P<oid>[0-9a-f]{64})/(?P<number>\d+)", _Handler.part),
    ("POST", "/large/(?P<oid>[0-9a-f]{64})", _Handler.complete),
    ("POST", rf"/api/models/{REPOSITORY}/commit/(?P<revision>[^/]+)", _Handler.commit),
    ("GET", rf"/{REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
    ("HEAD", rf"/{REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serving() -> Iterator[WritableHub]:
    hub = WritableHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
