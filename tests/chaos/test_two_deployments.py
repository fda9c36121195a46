"""Strangers on one store, a database restored from a backup, a mistyped URL: no file is lost, and who is wrong is told.

`make chaos` runs it, once on SQLite and a folder, once on PostgreSQL, Redis and S3.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from app.storage import MARKER, ArtifactStore
from tests.helpers.cluster import MAGNITUDE, SLOW, Cluster, Redis, eventually

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]
ROUNDS_S = 8
"""Time for every chore of a reconciler to run many times, at the cluster's half a second each."""
SETTLED_S = 4


class Place:
    """One broker and one artifact store, and databases that are made and restored by name."""

    def __init__(self, tmp_path: Path, backend: str, server: str, broker_url: str, artifacts_url: str) -> None:
        self._folder, self._embedded, self._server = tmp_path, backend == "embedded", server
        self.broker_url, self.artifacts_url = broker_url, artifacts_url
        self.made: list[Cluster] = []

    def cluster(self, home: str, database: str, artifacts_url: str = "") -> Cluster:
        url = f"sqlite:///{self._folder}/{database}.db" if self._embedded else self._url(database)
        if not self._embedded and not self._exists(database):
            self._admin(f"create database {database}")
        made = Cluster(
            self._folder / home,
            database_url=url,
            broker_url=self.broker_url,
            artifacts_url=artifacts_url or self.artifacts_url,
        )
        self.made.append(made)
        return made

    def copy(self, database: str, to: str) -> None:
        """Nobody may be connected."""
        if self._embedded:
            shutil.copyfile(self._folder / f"{database}.db", self._folder / f"{to}.db")
        else:
            self._admin(f"create database {to} template {database}")

    def files(self) -> dict[str, str]:
        """Key -> digest of everything in the store, once nothing comes or goes any more: of equal files the later ones
        are removed soon after their job's end."""
        store, keys = ArtifactStore(self.artifacts_url), list[str]()
        while keys != (keys := sorted(store._list(None))):
            time.sleep(SETTLED_S)
        return {key: hashlib.sha256(store.read(key)).hexdigest() for key in keys}

    def stop(self) -> None:
        for cluster in self.made:
            cluster.stop()
        if not self._embedded:
            for name in ("one", "two", "backup"):
                self._admin(f"drop database if exists {name} with (force)")

    def _url(self, database: str) -> str:
        return self._server.replace("/postgres?", f"/{database}?")

    def _exists(self, database: str) -> bool:
        return bool(self._admin(f"select 1 from pg_database where datname = '{database}'"))

    def _admin(self, statement: str) -> list[Any]:
        engine = create_engine(self._server, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            result = connection.execute(text(statement))
            rows = list(result) if result.returns_rows else []
        engine.dispose()
        return rows


@pytest.fixture(params=["embedded", "production"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "embedded":
        made = Place(tmp_path, "embedded", "", f"filesystem://{tmp_path}/broker", f"file://{tmp_path}/store")
    else:
        redis: Redis = request.getfixturevalue("redis")
        bucket: str = request.getfixturevalue("s3_bucket")
        server: str = request.getfixturevalue("postgresql_server")
        made = Place(tmp_path, "production", server, redis.url, f"{bucket}/espalier")
    yield made
    made.stop()


def succeed(cluster: Cluster, count: int) -> list[str]:
    job_ids = [cluster.submit(MAGNITUDE) for _ in range(count)]
    for job_id in job_ids:
        assert cluster.wait(job_id, 900)["status"] == "succeeded"
    return job_ids


def halt(cluster: Cluster) -> None:
    """End all its processes and connections."""
    for process in cluster.processes.values():
        process.terminate()
    for process in cluster.processes.values():
        process.wait(timeout=120)
    cluster.database.dispose()


def refused(cluster: Cluster, *words: str) -> dict[str, int]:
    """Start every process: each must end by itself, say the words, and show no traceback. Role -> exit code."""
    codes = {}
    for name in ("api", "reconciler", "worker0"):
        codes[name] = cluster.start(name).wait(timeout=120)
        said = (cluster.home / f"{name}.log").read_text()
        assert "Traceback" not in said, said
        assert all(word in said for word in words), said
    assert codes == {"api": 3, "reconciler": 2, "worker0": 2}
    return codes


def report(capsys: pytest.CaptureFixture[str], **figures: Any) -> None:
    with capsys.disabled():
        print("\n" + json.dumps(figures))  # noqa: T201 - the figures that docs/operations.md quotes


def test_a_second_deployment_on_the_same_store(
    place: Place, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    """An empty database, a full store: what deleted 349 files in five seconds once."""
    one = place.cluster("home1", "one")
    one.start_all()
    succeed(one, 3)
    before = place.files()
    two = place.cluster("home2", "two")
    refused(two, "belongs to deployment", "adopt-store")
    time.sleep(ROUNDS_S)
    assert place.files() == before
    more = succeed(one, 1)
    assert set(before) < set(place.files())
    report(capsys, case=request.node.name, files=len(before), lost=0, after=len(place.files()), jobs=3 + len(more))


def test_a_store_from_before_ids_is_refused_until_it_is_adopted(
    place: Place, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    one = place.cluster("home1", "one")
    one.start_all()
    [job_id] = succeed(one, 1)
    halt(one)
    ArtifactStore(place.artifacts_url).delete([MARKER])
    (one.home / "work" / MARKER).unlink()
    with one.database.write() as session:
        session.execute(text("delete from deployment"))
    before = place.files()
    refused(one, "adopt-store")
    refused(place.cluster("home2", "two"), "adopt-store")
    assert place.files() == before
    command = [str(Path(sys.executable).with_name("espalier")), "adopt-store"]
    subprocess.run(command, env=one.env, check=True, capture_output=True)
    one.start_all()
    assert one.http.get(f"/v1/jobs/{job_id}/artifacts/manifest.json").status_code == 200
    succeed(one, 1)
    assert before.items() <= place.files().items()
    report(capsys, case=request.node.name, files=len(before), lost=0)


def test_a_mistyped_store(place: Place, tmp_path: Path) -> None:
    """An established database, and an empty store that is not its own: the results would be missing."""
    one = place.cluster("home1", "one")
    one.start_all()
    succeed(one, 1)
    halt(one)
    before = place.files()
    mistyped = place.cluster("home1", "one", artifacts_url=f"file://{tmp_path}/mistyped")
    refused(mistyped, "ESPALIER_ARTIFACTS_URL")
    assert place.files() == before
    one.start_all()
    succeed(one, 1)
    assert before.items() <= place.files().items()


def test_a_restored_older_database(
    place: Place, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    """The backup has one job done, one deleted, one running, one queued. All end after it, and three more."""
    one = place.cluster("home1", "one")
    one.start_all()
    old, deleted = succeed(one, 2)
    one.http.delete(f"/v1/jobs/{deleted}").raise_for_status()
    running = one.submit(SLOW)
    queued = one.submit(MAGNITUDE)
    one.wait_for_event(running, "checkpoint", 600, block=1)
    for process in one.processes.values():  # at once: the running job stays running in the backup
        process.kill()
    halt(one)
    place.copy("one", to="backup")

    one.start_all()
    for job_id in (running, queued):
        assert one.wait(job_id, 900)["status"] == "succeeded"
    newer = succeed(one, 3)
    halt(one)
    before = place.files()
    assert all(any(job_id in key for key in before) for job_id in (old, running, queued, *newer))

    restored = place.cluster("home1", "backup")
    restored.start_all()
    for job_id in (running, queued):
        assert restored.wait(job_id, 900)["status"] == "succeeded"
    time.sleep(ROUNDS_S)
    after = place.files()
    assert before.items() <= after.items()
    for job_id in (old, running, queued):
        listed = restored.http.get(f"/v1/jobs/{job_id}/artifacts").json()["data"]
        for entry in listed:
            response = restored.http.get(entry["url"])
            assert hashlib.sha256(response.content).hexdigest() == entry["sha256"]
    report(capsys, case=request.node.name, files=len(before), lost=len(before.keys() - after.keys()))


def test_everything_starts_at_once_on_nothing(place: Place) -> None:
    """API, workers and reconcilers of a fresh deployment, as docker compose starts them: one id, nobody refused."""
    one = place.cluster("home1", "one")
    for name in ("worker0", "reconciler0", "api", "reconciler1", "worker1"):
        one.start(name)
    eventually(one.ready, 60, "the API is ready")
    succeed(one, 2)
    assert [process.poll() for process in one.processes.values()] == [None] * 5
