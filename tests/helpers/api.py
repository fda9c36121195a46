"""The API in this process, with hands to play the worker, and the specs, reports and folders its tests send."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.db import Database
from app.failure import Failure
from app.http.protocol import BoundedProtocol
from app.jobs import attempts, removals
from app.keys import service as keys
from app.keys.scopes import SCOPES
from app.services import Services
from tests.helpers.job_life import worker
from workers.engine.report import FileEntry, GateResult, Manifest, Report, TunePoint, TuneReport, Verdict

ROOT = Path(__file__).parents[2]
SPEC: dict[str, Any] = {
    "model": {"id": "bookworm-7m"},
    "score": {"method": "magnitude"},
    "prune": {"method": "mask", "sparsity": 0.5},
}
WANDA: dict[str, Any] = {
    **SPEC,
    "score": {"method": "wanda"},
    "calibrate": {"dataset": "calibration.txt", "samples": 4, "sequence_length": 64},
}
REPORT = Report.model_validate(
    {
        "spec": SPEC,
        "provenance": {
            "spec_digest": "sha256:0",
            "model_id": "bookworm-7m",
            "model_commit": "sha256:0",
            "data_digests": {},
            "seed": 0,
            "versions": {},
            "device": "cpu",
            "threads": 1,
            "compute_dtype": "float32",
        },
        "parameters": 4,
        "prunable_parameters": 2,
        "zeros": 1,
        "sparsity": 0.5,
        "layers": [],
        "metrics": [
            {
                "name": "perplexity/a.txt",
                "unit": "perplexity",
                "higher_is_better": False,
                "dense": 10.0,
                "pruned": 11.0,
                "ratio": 1.1,
            }
        ],
        "stages": [],
        "runtimes": [],
        "warnings": [],
    }
)
WEIGHTS = bytes(range(256)) * 20
GATE: dict[str, Any] = {"metric": "size/weight_bytes", "max": 1.0}
GATED: dict[str, Any] = {**SPEC, "evaluate": [{"method": "size"}], "gates": [GATE]}


def judged(verdict: Verdict) -> Report:
    """REPORT with one gate, which was judged so."""
    gate = GateResult(
        metric="perplexity/a.txt", of="ratio", min=None, max=1.1, confidence=0.95,
        value=1.1, interval=(1.09, 1.11), verdict=verdict, reason="because",
    )  # fmt: skip
    return REPORT.model_copy(update={"gates": [gate], "verdict": verdict})


def tuned(curve: list[TunePoint]) -> TuneReport:
    return TuneReport(
        method="lora", steps=3, stopped_early=False, best_step=3, holdout_loss_before=3.0, holdout_loss_after=2.7,
        curve=curve, tokens_per_s=None, trained_parameters=1, train_windows=1, holdout_windows=1, peak_memory_bytes=1,
        device_peak_memory_bytes=None, resumed_step=0,
    )  # fmt: skip


W1 = worker("w1")
"""Alive in every test of the API."""
FILES = {"model.safetensors": WEIGHTS, "README.md": b"# A card", "report.html": b"<h1>Report</h1>"}
CRASH = Failure(code="runner_died", message="it died", hint="wait", retryable=False, stage="prune")


@dataclass
class Api:
    """A client with a key of one tenant, and what lies behind the API."""

    client: TestClient
    services: Services
    key: str
    key_id: str
    tenant_id: str

    @property
    def database(self) -> Database:
        return self.services.database

    def submit(self, spec: dict[str, Any] = SPEC, **fields: Any) -> dict[str, Any]:
        response = self.client.post("/v1/jobs", json={"spec": spec, **fields})
        assert response.status_code == 202, response.text
        return response.json()

    def get(self, job: dict[str, Any], path: str = "", **headers: str) -> httpx2.Response:
        return self.client.get(
            f"/v1/jobs/{job['id']}{path}", headers={k.replace("_", "-"): v for k, v in headers.items()}
        )

    def post(self, job: dict[str, Any], verb: str) -> httpx2.Response:
        return self.client.post(f"/v1/jobs/{job['id']}/{verb}")

    # -- the worker's part ---------------------------------------------------------------------------------------------

    def claim(self) -> attempts.Claim:
        """The first in the queue."""
        with self.database.write() as session:
            held = attempts.claim(session, W1, ttl_s=60, overtaking_ms=0)
        assert held is not None, "nothing is queued"
        return held

    def record(self, held: attempts.Claim, *events: tuple[str, dict[str, Any]]) -> None:
        progress = {"stage": "prune", "done": 1, "total": 8, "unit": "block", "rate": 2.0, "eta_s": 3.5}
        with self.database.write() as session:
            attempts.record(session, held, list(events), progress)

    def succeed(self, held: attempts.Claim, report: Report = REPORT, files: Mapping[str, bytes] | None = None) -> None:
        entries = []
        for path, content in (FILES if files is None else files).items():
            key = self.services.store.file_key(held.tenant_id, held.job_id, held.attempt, held.fence, path)
            self.services.store.put_bytes(key, content)
            entries.append((FileEntry(path=path, bytes=len(content), sha256=hashlib.sha256(content).hexdigest()), key))
        with self.database.write() as session:
            attempts.succeed(session, held, report=report, manifest_sha256="0" * 64, files=entries)
        removals.work_off_now(self.database, self.services.store, [held.job_id])

    def fail(self, held: attempts.Claim, failure: Failure = CRASH) -> None:
        with self.database.write() as session:
            attempts.fail(session, held, failure, backoff_s=0)

    def log(self, held: attempts.Claim, n: int, text: str) -> None:
        key = self.services.store.log_key(held.tenant_id, held.job_id, held.attempt, held.fence, n)
        self.services.store.put_bytes(key, text.encode())

    def succeeded(self, files: Mapping[str, bytes] | None = None, **fields: Any) -> dict[str, Any]:
        job = self.submit(**fields)
        self.succeed(self.claim(), files=files)
        return self.get(job).json()


def others() -> dict[str, bytes]:
    """The files of a result of which no other job has any."""
    return {path: content + uuid.uuid4().bytes for path, content in FILES.items()}


def with_manifest(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of a result as the engine leaves them, with the manifest that lists them."""
    entries = [FileEntry(path=p, bytes=len(c), sha256=hashlib.sha256(c).hexdigest()) for p, c in sorted(files.items())]
    manifest = Manifest(spec=SPEC, provenance=REPORT.provenance, stages=[], files=entries)
    return {**files, "manifest.json": manifest.model_dump_json(indent=2).encode()}


def make_key(
    services: Services, tenant: str, scopes: tuple[str, ...] = SCOPES, expires_days: int | None = None
) -> tuple[str, str, str]:
    """(text, id, tenant id) of a new key."""
    with services.database.write() as session:
        key, text = keys.create_key(
            session, secret=services.secret, tenant=tenant, name="test", scopes=scopes, expires_days=expires_days
        )
        return text, key.id, key.tenant_id


@contextlib.contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The app behind a real socket, for streams, waits, browsers and requests at once; its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=BoundedProtocol, ws="none", log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    eventually(lambda: server.started)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listener.close()


def eventually(condition: Any, within_s: float = 10) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.01)


def pointers(problem: dict[str, Any]) -> list[str]:
    return [error["pointer"] for error in problem.get("errors", [])]


def tiny_model(folder: Path, config: dict[str, Any] | None = None, files: tuple[str, ...] = ()) -> Path:
    """A folder that looks like a model as far as the API looks."""
    folder.mkdir(parents=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    for name in files:
        (folder / name).write_bytes(b"")
    return folder
