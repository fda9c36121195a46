"""A minute of everything at once on PostgreSQL: no deadlock in its log, nobody turned away with 503.

Clients submit, label, cancel, retry and delete jobs and sweeps over HTTP; the API's relay, two reconcilers and two
workers, who end their jobs in every way there is and fall silent now and then, change the same rows.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import create_engine, text

from app.db import Database
from app.errors import InvalidTransition
from app.failure import Failure
from app.jobs import attempts
from app.jobs.attempts import Fenced
from app.sweeps import repository as sweep_repository
from app.sweeps import service as sweeps
from tests.helpers.api import REPORT
from tests.helpers.cluster import MAGNITUDE, Cluster, Redis, eventually
from tests.helpers.job_life import MANY
from workers.engine.report import FileEntry

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]
SECONDS, CLIENTS, WORKERS = 60, 8, 2
SWEEP = {
    "spec": {**MAGNITUDE, "prune": {"method": "mask"}},
    "grid": {"/prune/sparsity": [n / 10 for n in range(1, 9)]},
    "stop": {"after_failures": 3},
}
FAILURE = Failure(code="runner_died", message="died\0", hint="wait", retryable=True)


@pytest.fixture
def cluster(postgresql_server: str, redis: Redis, tmp_path: Path) -> Iterator[Cluster]:
    """API and two reconcilers; the workers are this test's. Everything that is tried again is tried at once."""
    engine = create_engine(postgresql_server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("drop database if exists chaos_locks with (force)"))
        connection.execute(text("create database chaos_locks"))
    engine.dispose()
    made = Cluster(
        tmp_path / "home",
        database_url=postgresql_server.replace("/postgres?", "/chaos_locks?"),
        broker_url=redis.url,
        reconcile_s=0.2,
        redispatch_s=0.5,
        idempotency_hours=0.0005,
        log_level="warning",
    )
    try:
        for name in ("api", "reconciler0", "reconciler1"):
            made.start(name)
        eventually(made.ready, 120, "the API is ready")
        yield made
    finally:
        made.stop()


class Load:
    """State that clients and workers share: known ids, answers by status, errors."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.end = cluster, time.monotonic() + SECONDS
        self.jobs: list[str] = []
        self.sweeps: list[str] = []
        self.answers, self.endings = Counter[str](), Counter[str]()
        self.errors: list[str] = []

    def run(self) -> None:
        threads = [threading.Thread(target=self._guarded, args=(self._client, n)) for n in range(CLIENTS)]
        threads += [threading.Thread(target=self._guarded, args=(self._worker, n)) for n in range(WORKERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _guarded(self, work: Callable[[random.Random], None], seed: int) -> None:
        try:
            work(random.Random(seed))
        except Exception as error:
            self.errors.append(repr(error))

    def _client(self, rng: random.Random) -> None:
        url, headers = self.cluster.http.base_url, self.cluster.http.headers
        with httpx2.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as http:
            while time.monotonic() < self.end:
                answer = self._request(http, rng)
                self.answers[str(answer.status_code)] += 1
                if answer.status_code >= 500:
                    self.errors.append(answer.text)

    def _request(self, http: httpx2.Client, rng: random.Random) -> httpx2.Response:
        job = f"/v1/jobs/{rng.choice(self.jobs[-60:])}" if self.jobs else "/v1/jobs"
        sweep = f"/v1/sweeps/{rng.choice(self.sweeps[-6:])}" if self.sweeps else "/v1/sweeps"
        match rng.choices(
            ["submit", "keyed", "cancel", "delete", "retry", "label", "sweep", "stop", "drop", "look"],
            [6, 3, 4, 6, 4, 3, 1, 1, 2, 2],
        )[0]:
            case "submit":
                return self._made(self.jobs, http.post("/v1/jobs", json={"spec": MAGNITUDE, "max_attempts": 3}))
            case "keyed":
                key = {"Idempotency-Key": f"k{rng.randrange(20)}"}
                return self._made(self.jobs, http.post("/v1/jobs", json={"spec": MAGNITUDE}, headers=key))
            case "cancel":
                return http.post(f"{job}/cancel")
            case "delete":
                return http.delete(job)
            case "retry":
                return http.post(f"{job}/retry")
            case "label":
                return http.patch(job, json={"labels": {f"k{rng.randrange(5)}": "v"}})
            case "sweep":
                answer = self._made(self.sweeps, http.post("/v1/sweeps", json=SWEEP))
                self.jobs += [child["job_id"] for child in answer.json()["children"]]
                return answer
            case "stop":
                return http.post(f"{sweep}/cancel")
            case "drop":
                return http.delete(sweep)
        return http.get(job)

    def _made(self, known: list[str], answer: httpx2.Response) -> httpx2.Response:
        if answer.status_code == 202:
            known.append(answer.json()["id"])
        return answer

    def _worker(self, rng: random.Random) -> None:
        """The writes of workers/tasks.py, without the work between."""
        database = Database(self.cluster.config.database_url, pool_size=2)
        while time.monotonic() < self.end:
            held = database.transact(lambda session: attempts.claim(session, MANY, ttl_s=0.3, overtaking_ms=0))
            if held is None:
                time.sleep(0.005)
                continue
            ending = rng.choice(["succeed", "fail", "release", "silence", "late"])
            try:
                for _ in range(2):
                    database.transact(lambda session, held=held: self._beat(session, held))
                self._end(database, held, ending)
            except (Fenced, InvalidTransition):
                ending = "fenced"
            self.endings[ending] += 1
            database.transact(lambda session, held=held: self._stop_sweep(session, held))
        database.dispose()

    def _beat(self, session: Any, held: attempts.Claim) -> None:
        attempts.renew(session, held, ttl_s=0.3)
        attempts.record(session, held, [("checkpoint", {"block": 1})], {"stage": "prune", "done": 1, "total": 8})

    def _end(self, database: Database, held: attempts.Claim, ending: str) -> None:
        match ending:
            case "succeed":
                files = [(FileEntry(path="a", bytes=1, sha256="0" * 64), f"{held.job_id}/{held.fence}")]
                database.transact(
                    lambda session: attempts.succeed(
                        session, held, report=REPORT, manifest_sha256="0" * 64, files=files
                    )
                )
            case "fail":
                database.transact(lambda session: attempts.fail(session, held, FAILURE, backoff_s=0.05))
            case "late":  # the reconcilers have taken the job back by then
                time.sleep(1.5)
                database.transact(lambda session: attempts.release(session, held))
            case "release":
                database.transact(lambda session: attempts.release(session, held))

    def _stop_sweep(self, session: Any, held: attempts.Claim) -> None:
        if sweep_id := sweep_repository.with_stop_rule_of_job(session, held.job_id):
            sweeps.enforce_stop(session, sweep_id)


def test_a_minute_of_everything_at_once(
    cluster: Cluster, postgresql_server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    load = Load(cluster)
    load.run()
    time.sleep(2)  # PostgreSQL publishes its statistics once a second
    engine = create_engine(postgresql_server)
    with engine.connect() as connection:
        deadlocks = connection.execute(
            text("select deadlocks from pg_stat_database where datname = 'chaos_locks'")
        ).scalar_one()
        server_log = Path(connection.execute(text("show data_directory")).scalar_one()) / "log"
    engine.dispose()
    logged = server_log.read_text(errors="replace").count("deadlock detected")
    failed_chores = [(cluster.home / f"reconciler{n}.log").read_text().count("chore_failed") for n in range(2)]
    with capsys.disabled():
        figures = {
            "seconds": SECONDS, "deadlocks": deadlocks, "deadlocks_in_log": logged, "answers": dict(load.answers),
            "endings": dict(load.endings), "errors": len(load.errors), "failed_chores": failed_chores,
        }  # fmt: skip
        print("\n" + json.dumps(figures))  # noqa: T201 - the figures that docs/operations.md quotes
    assert load.errors == []
    assert (deadlocks, logged, failed_chores) == (0, 0, [0, 0])
    assert load.answers["503"] == 0
    assert load.answers.keys() >= {"202", "200", "204", "409", "404"}  # all of it really happened
    assert load.endings.keys() >= {"succeed", "fail", "release", "silence", "fenced"}
