"""A registry of our own that answers what MLflow's server answers to the requests of a publisher, in memory."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote

ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts/"


class Registry:
    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.models: dict[str, dict[str, str]] = {}
        """Name -> alias -> version."""
        self.versions: list[dict[str, Any]] = []

    def answer(self, method: str, asked: dict[str, Any]) -> dict[str, Any] | None:
        """None where it is there already."""
        match method:
            case "experiments/create":
                if asked["name"] in self.experiments:
                    return None
                self.experiments[asked["name"]] = made = str(len(self.experiments) + 1)
                return {"experiment_id": made}
            case "experiments/get-by-name":
                found = self.experiments[asked["experiment_name"]]
                return {"experiment": {"experiment_id": found, "lifecycle_stage": "active"}}
            case "runs/create":
                run_id = f"{len(self.runs):032x}"
                uri = f"mlflow-artifacts:/{asked['experiment_id']}/{run_id}/artifacts"
                info = {"run_id": run_id, "artifact_uri": uri, "status": "RUNNING"}
                self.runs[run_id] = {"info": info, "data": {"tags": asked["tags"], "metrics": []}}
                return {"run": self.runs[run_id]}
            case "runs/search":
                wanted = _wanted(asked["filter"])
                return {"runs": [each for each in self.runs.values() if wanted in each["data"]["tags"]]}
            case "runs/get":
                return {"run": self.runs[asked["run_id"]]}
            case "runs/log-batch":
                self.runs[asked["run_id"]]["data"]["metrics"] += asked["metrics"]
                return {}
            case "runs/update":
                self.runs[asked["run_id"]]["info"]["status"] = asked["status"]
                return {}
            case "artifacts/list":
                return {"files": self._listed(asked["run_id"], asked["path"])}
            case "registered-models/create":
                if asked["name"] in self.models:
                    return None
                self.models[asked["name"]] = {}
                return {}
            case "registered-models/get":
                aliases = [{"alias": alias, "version": v} for alias, v in self.models[asked["name"]].items()]
                return {"registered_model": {"aliases": aliases}}
            case "registered-models/alias":
                self.models[asked["name"]][asked["alias"]] = asked["version"]
                return {}
            case "model-versions/create":
                number = str(1 + sum(each["name"] == asked["name"] for each in self.versions))
                self.versions.append({**asked, "version": number, "status": "READY"})
                return {"model_version": self.versions[-1]}
            case "model-versions/get":
                mine = [each for each in self.versions if each["name"] == asked["name"]]
                return {"model_version": next(each for each in mine if each["version"] == asked["version"])}
            case "model-versions/search":
                name = re.match(r"name = '([^']+)'", asked["filter"])
                assert name
                mine = [each for each in self.versions if each["name"] == name[1]]
                return {"model_versions": [each for each in mine if _wanted(asked["filter"]) in each["tags"]]}
        raise AssertionError(f"no such method: {method}")

    def _listed(self, run_id: str, folder: str) -> list[dict[str, Any]]:
        root = self.runs[run_id]["info"]["artifact_uri"].removeprefix("mlflow-artifacts:/")
        found: dict[str, dict[str, Any]] = {}
        for path, content in self.files.items():
            if path.startswith(f"{root}/{folder}/"):
                first, *more = path.removeprefix(f"{root}/{folder}/").split("/")
                entry = {"path": f"{folder}/{first}", "is_dir": bool(more)}
                found[first] = entry if more else {**entry, "file_size": len(content)}
        return list(found.values())


class _Handler(BaseHTTPRequestHandler):
    registry: Registry

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def _answer(self) -> None:
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path.startswith(ARTIFACTS):
            name = unquote(path.removeprefix(ARTIFACTS))
            if self.command == "PUT":
                self.registry.files[name] = body
                return self._send(200, b"{}")
            return self._send(200, self.registry.files[name])
        asked = json.loads(body) if body else dict(parse_qsl(query))
        found = self.registry.answer(path.removeprefix("/api/2.0/mlflow/"), asked)
        if found is None:
            return self._send(400, json.dumps({"error_code": "RESOURCE_ALREADY_EXISTS", "message": "exists"}).encode())
        return self._send(200, json.dumps(found).encode())

    do_GET = do_POST = do_PUT = _answer

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _wanted(text: str) -> dict[str, str]:
    """The tag that a filter asks for."""
    found = re.search(r"tags\.`(\w+)` = '(\w+)'", text)
    assert found
    return {"key": found[1], "value": found[2]}


@contextmanager
def serving() -> Iterator[str]:
    """The address of a running one."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"registry": Registry()}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
