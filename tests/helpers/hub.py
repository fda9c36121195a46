"""A hub of our own: an HTTP server on this machine that answers as huggingface.co does, for the real client.

Models `org/good` (the shipped one), `org/sharded` (the same in two files, with much beside them), `org/missing`,
`org/gated`, `org/pickles`, `org/bare` (no config), `org/whole` (sent without ranges), `org/down`; data set `org/texts`
with one split, `train`. The client reads its settings when imported, so whoever uses this runs it in a process of its
own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save

from tests.helpers.small_models import EXAMPLES

BOOKWORM = EXAMPLES / "models/bookworm-7m"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
DOCUMENTS = ["It was the best of times,", "it was the worst of times."]
SHARDED = {
    "LICENSE": b"Do as you like.",
    "NOTICE.txt": b"Made by us.",
    "USE_POLICY.md": b"Be kind.",
    "additional_chat_templates/tool.jinja": b"{{ messages }}",
    "tokenizer.model": b"sentences",
    "README.md": b"# A model",
    "consolidated.safetensors": b"the same weights again",
    "original/model.safetensors": b"and again",
    "pytorch_model.bin": b"and again",
    "stray.safetensors": b"not in the index",
    "modeling_evil.py": b"import os",
}
"""Files of `org/sharded` beside weights, index, config and tokenizer."""
_JSONL = "".join(json.dumps({"text": document}) + "\n" for document in DOCUMENTS).encode()


class FakeHub(BaseHTTPRequestHandler):
    """As much of the hub as resolving and downloading a model asks for."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def _answer(self) -> None:
        if match := re.match(r"/api/models/org/(\w+)/revision/([^?]+)", self.path):
            self._info(match[1], match[2])
        elif self.path.startswith(f"/api/models/org/good/tree/{COMMIT}"):
            files = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0"} for f in BOOKWORM.iterdir()]
            self._body(json.dumps(files).encode())
        elif self.path.startswith(f"/api/models/org/sharded/tree/{COMMIT}"):
            files = [{"type": "file", "path": n, "size": len(c), "oid": "0"} for n, c in sharded().items()]
            self._body(json.dumps(files).encode())
        elif match := re.match(rf"/org/sharded/resolve/{COMMIT}/([\w./-]+)$", self.path):
            if match[1] in sharded():
                self._content(sharded()[match[1]], match[1].replace("/", "-"))
            else:
                self._error(404, "EntryNotFound")
        elif match := re.match(rf"/org/(good|pickles|whole)/resolve/{COMMIT}/([\w.]+)$", self.path):
            if match[1] == "whole":
                del self.headers["Range"]
            self._file(BOOKWORM / match[2])
        elif self.path.startswith("/api/datasets/org/texts/tree/"):
            self._body(json.dumps([{"type": "file", "path": "a.jsonl", "size": len(_JSONL), "oid": "0"}]).encode())
        elif match := re.match(r"/api/datasets/org/texts(?:/revision/([^?]+))?$", self.path):
            if match[1] == "nowhere":
                self._error(404, "RevisionNotFound")
            else:
                self._body(json.dumps({"id": "org/texts", "sha": COMMIT, "siblings": []}).encode())
        elif re.match(rf"/datasets/org/texts/resolve/(main|{COMMIT})/a\.jsonl$", self.path):
            self._content(_JSONL, "a.jsonl")
        elif self.path.startswith("/api/datasets/"):
            self._error(404, "RepoNotFound")
        else:
            self._error(404, "EntryNotFound")

    def _info(self, name: str, revision: str | None) -> None:
        if name == "missing":
            self._error(404, "RepoNotFound")
        elif name == "gated":
            self._error(403, "GatedRepo")
        elif name == "down":
            self._error(503, "")
        elif revision == "nowhere":
            self._error(404, "RevisionNotFound")
        else:
            files = ["config.json", "pytorch_model.bin"] if name == "pickles" else [f.name for f in BOOKWORM.iterdir()]
            files = [*sharded()] if name == "sharded" else files
            files = [file for file in files if not (name == "bare" and file == "config.json")]
            siblings = [{"rfilename": file} for file in files]
            self._body(json.dumps({"id": f"org/{name}", "sha": COMMIT, "siblings": siblings}).encode())

    def _file(self, path: Path) -> None:
        if path.exists():
            self._content(path.read_bytes(), path.name)
        else:
            self._error(404, "EntryNotFound")

    def _content(self, content: bytes, name: str) -> None:
        status = 200
        if wanted := re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            content, status = content[int(wanted[1]) : int(wanted[2]) + 1], 206
        self._body(content, status, {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT})

    def _error(self, status: int, code: str) -> None:
        self._body(b"{}", status, {"X-Error-Code": code} if code else {})

    def _body(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@cache
def sharded() -> dict[str, bytes]:
    """Path -> content of `org/sharded`. Its second file holds a stale copy of the final norm, as the first does."""
    weights = load_file(BOOKWORM / "model.safetensors")
    norm = "model.norm.weight"
    stale = {norm: weights[norm] + 1}
    index = {name: "a.safetensors" if name < norm else "b.safetensors" for name in weights}
    files = {
        "a.safetensors": save({name: weights[name] for name in weights if name < norm} | stale),
        "b.safetensors": save({name: weights[name] for name in weights if name >= norm}),
        "model.safetensors.index.json": json.dumps({"weight_map": index}).encode(),
        "config.json": (BOOKWORM / "config.json").read_bytes(),
    }
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        files[name] = (BOOKWORM / name).read_bytes()
    return files | SHARDED


@contextmanager
def serving() -> Iterator[str]:
    """The endpoint of a running hub."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def client(code: str, *arguments: str, endpoint: str, home: Path, offline: str = "0") -> dict[str, Any]:
    """Run `code` as a client of the hub; the JSON object that it prints."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": offline}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found
