"""One attempt's ends, with the engine's part played: what it deletes, what it keeps, and what it does with a bug."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.exc import OperationalError

from app.db import Database
from app.jobs import attempts, fleet, models, service, upkeep, worker_repository
from app.keys.models import Tenant
from app.logs import configure_logging
from app.settings import Settings
from app.storage import ArtifactStore, StorageError
from tests.helpers.job_life import MANY
from workers import scratch, tasks
from workers.children import Start
from workers.engine.report import Report
from workers.engine.spec import CompressionSpec
from workers.failures import of_storage
from workers.supervisor import Exit, Order
from workers.tasks import Attempt

SPEC = CompressionSpec.model_validate(
    {"model": {"id": "m"}, "score": {"method": "magnitude"}, "prune": {"method": "mask", "sparsity": 0.5}}
)
REPORT = {
    "spec": {}, "parameters": 1, "prunable_parameters": 1, "zeros": 0, "sparsity": 0, "layers": [],
    "metrics": [], "stages": [], "runtimes": [], "warnings": [],
    "provenance": {
        "spec_digest": "sha256:0", "model_id": "m", "model_commit": "c", "data_digests": {}, "seed": 0, "versions": {},
        "device": "cpu", "threads": 1, "compute_dtype": "float32",
    },
}  # fmt: skip
OnTick = Callable[[list[dict[str, Any]]], Order]
DONE = Exit(Order.CONTINUE, 0, "package", None, out_of_memory=False)


class Worker:
    """A claimed job, and the engine that the test plays."""

    def __init__(self, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_attempts: int) -> None:
        configure_logging("error")  # what renders exceptions otherwise takes minutes over a million characters
        self.database, self._monkeypatch = database, monkeypatch
        self.settings = Settings(
            home=tmp_path, database_url=str(database.engine.url), heartbeat_s=0.05, lease_ttl_s=1, retry_backoff_s=0
        )
        self.store = ArtifactStore(self.settings.artifacts_url)
        with database.write() as session:
            session.add(Tenant(id="ten_1", name="one", created_at=1))
            session.flush()
            service.create(
                session, tenant_id="ten_1", spec=SPEC, labels={}, priority=0, max_attempts=max_attempts,
                deadline_s=60, request_id=None,
            )  # fmt: skip

    def attempt(self, engine: Callable[[Path, OnTick], Exit]) -> Attempt:
        """Claim, and run with `engine(folder of the attempt, on_tick)` in place of the child process."""
        with self.database.write() as session:
            held = attempts.claim(session, MANY, ttl_s=60, overtaking_ms=0)
        assert held is not None
        attempt = Attempt(self.settings, self.database, self.store, held)
        attempt.checkpoint.mkdir(parents=True)
        (attempt.checkpoint / "block_000").write_bytes(b"done")
        self._monkeypatch.setattr(tasks, "supervise", lambda command, *, on_tick, **_: engine(attempt.folder, on_tick))
        attempt.run()
        return attempt

    @property
    def job(self) -> models.Job:
        with self.database.read() as session:
            return session.scalars(select(models.Job)).one()

    def log(self, attempt: Attempt) -> str:
        held = attempt.held
        return b"".join(self.store.read_log(held.tenant_id, held.job_id, held.attempt, held.fence)).decode()

    def files(self) -> list[str]:
        return sorted(p.name for p in (self.settings.home / "artifacts").glob("*/*/*/files/**/*") if p.is_file())


@pytest.fixture
def worker(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    return Worker(database, tmp_path, monkeypatch, max_attempts=2)


def package(folder: Path, *, weights: bytes = b"weights") -> None:
    """A result, as the engine leaves it."""
    model = folder / "model"
    model.mkdir()
    report = Report.model_validate(REPORT).model_dump_json().encode()
    contents = {"model.safetensors": weights, "report.json": report}
    entries = []
    for name, content in contents.items():
        (model / name).write_bytes(content)
        entries.append({"path": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})
    (model / "manifest.json").write_text(
        json.dumps({"files": entries, "spec": {}, "provenance": REPORT["provenance"], "stages": []})
    )


def succeeding(folder: Path, on_tick: OnTick) -> Exit:
    package(folder)
    return DONE


def test_a_result_is_published(worker: Worker) -> None:
    attempt = worker.attempt(succeeding)
    assert (worker.job.status, worker.job.error) == ("succeeded", None)
    assert worker.files() == ["manifest.json", "model.safetensors", "report.json"]
    assert not attempt.folder.parent.exists()


@pytest.mark.parametrize(("kind", "gpus"), [("cpu", ""), ("gpu", "5,6")])
def test_the_runner_is_given_the_devices_of_the_claim(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, kind: Literal["cpu", "gpu"], gpus: str
) -> None:
    started: list[str] = []

    def supervise(start: Start, *, log: Path, **_: Any) -> Exit:
        with log.open("wb") as file:
            start(file)
        package(log.parent)
        return DONE

    monkeypatch.setattr(tasks, "supervise", supervise)
    monkeypatch.setattr(tasks, "_start_runner", lambda arguments, _: started.extend(arguments))
    host = fleet.Worker("wrk_h", "h", kind, {"h/5": "5", "h/6": "6", "h/7": "7"})
    monkeypatch.setattr(tasks, "this_worker", lambda: host)
    with worker.database.write() as session:
        session.execute(text("update jobs set devices = 2"))
    held = tasks.claim_next(worker.settings, worker.database, host)
    assert held is not None
    settings = worker.settings.model_copy(update={"worker_threads": 3})
    Attempt(settings, worker.database, worker.store, held).run()
    assert worker.job.status == "succeeded"
    assert started[started.index("--gpus") + 1] == gpus
    assert started[started.index("--threads") + 1] == "6"


def test_a_success_whose_answer_was_lost_keeps_its_files(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit went through, the connection broke before it said so: the repetition finds itself fenced."""
    transact, lost = Database.transact, list[str]()

    def breaking(self: Database, work: Callable[[Any], Any]) -> Any:
        answer = transact(self, work)
        if worker.job.status == "succeeded" and not lost:
            lost.append("the answer")
            raise OperationalError("commit", {}, Exception("server closed the connection unexpectedly"))
        return answer

    monkeypatch.setattr(Database, "transact", breaking)
    worker.attempt(succeeding)
    assert lost
    assert worker.job.status == "succeeded"
    assert worker.files() == ["manifest.json", "model.safetensors", "report.json"]


def test_a_fenced_attempt_removes_what_it_uploaded_once_the_database_says_it_is_lost(worker: Worker) -> None:
    def engine(folder: Path, on_tick: OnTick) -> Exit:
        package(folder)
        with worker.database.write() as session:
            job = worker_repository.lock_job(session, worker.job.id)
            assert job is not None
            job.lease_expires_at = 1
        return DONE

    def put_file(key: str, path: Path) -> None:
        put(key, path)
        if path.name == "manifest.json":  # frozen until the reconciler has been
            with worker.database.write() as session:
                upkeep.reap(session, backoff_s=60)

    put = worker.store.put_file
    worker.store.put_file = put_file  # type: ignore[method-assign]
    real_renew = attempts.renew

    def renew(session: Any, held: Any, *, ttl_s: float) -> Any:
        return real_renew(session, held, ttl_s=-1)  # a lease that is always over

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempts, "renew", renew)
        worker.attempt(engine)
    assert worker.job.status == "queued"
    assert worker.files() == []


def test_an_attempt_that_only_lost_the_database_deletes_nothing(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives up when its lease is over, but nothing has recorded its end."""
    transact = Database.transact

    def breaking(self: Database, work: Callable[[Any], Any]) -> Any:
        if worker.files() == ["manifest.json", "model.safetensors", "report.json"]:
            raise OperationalError("update", {}, Exception("no route to host"))
        return transact(self, work)

    monkeypatch.setattr(Database, "transact", breaking)
    worker.attempt(succeeding)
    assert worker.job.status == "running"
    assert worker.files() == ["manifest.json", "model.safetensors", "report.json"]


FULL = {"event": "error", "code": "disk_full", "message": "full", "hint": "free some", "retryable": True}


class TestFullDisk:
    def engine(self, folder: Path, on_tick: OnTick) -> Exit:
        return Exit(Order.CONTINUE, 70, "prune", FULL, out_of_memory=False)

    def test_scratch_is_freed_with_the_last_attempt(self, worker: Worker) -> None:
        first = worker.attempt(self.engine)
        assert first.checkpoint.exists()  # the next attempt goes on from there
        assert not first.folder.exists()
        (first.checkpoint / "block_000").unlink()
        first.checkpoint.rmdir()
        last = worker.attempt(self.engine)
        assert not last.folder.parent.exists()
        assert (worker.job.status, worker.job.error and worker.job.error["code"]) == ("failed", "disk_full")

    def test_scratch_is_freed_before_the_database_needs_the_room(
        self, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The embedded database lies on the same disk."""
        worker = Worker(database, tmp_path, monkeypatch, max_attempts=1)
        fail, scratch_at_write = attempts.fail, list[bool]()

        def failing(session: Any, held: Any, *args: Any, **kw: Any) -> None:
            scratch_at_write.append(scratch.checkpoint_dir(worker.settings.work_dir, held.job_id).exists())
            fail(session, held, *args, **kw)

        monkeypatch.setattr(attempts, "fail", failing)
        worker.attempt(self.engine)
        assert scratch_at_write == [False]

    @pytest.mark.parametrize(
        "error",
        [
            OSError(errno.ENOSPC, "No space left on device"),
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            StorageError("Generic LocalFileSystem error: No space left on device (os error 28)"),
        ],
    )
    def test_is_recognised_whoever_meets_it(self, error: Exception) -> None:
        assert of_storage(error).code == "disk_full"


class TestBugs:
    def test_end_the_attempt_at_once_with_the_traceback_in_its_log(self, worker: Worker) -> None:
        def engine(folder: Path, on_tick: OnTick) -> Exit:
            raise ZeroDivisionError("nobody thought of\0this")

        attempt = worker.attempt(engine)
        job = worker.job
        assert (job.status, job.attempt) == ("failed", 1)
        assert job.error is not None
        assert (job.error["code"], job.error["message"]) == ("internal", "ZeroDivisionError: nobody thought of␀this")
        assert "Traceback (most recent call last)" in worker.log(attempt)
        assert "nobody thought of" in worker.log(attempt)

    def test_are_told_at_bounded_length(self, worker: Worker) -> None:
        def engine(folder: Path, on_tick: OnTick) -> Exit:
            raise ValueError("x" * 10**6)

        worker.attempt(engine)
        assert worker.job.error is not None
        assert len(worker.job.error["message"]) < 2100
        assert worker.job.error["message"].endswith("x… (998,012 characters more)")

    def test_in_what_the_engine_says_too(self, worker: Worker) -> None:
        """A line of progress with a field missing."""

        def engine(folder: Path, on_tick: OnTick) -> Exit:
            on_tick([{"event": "progress", "at": 1.0, "stage": "prune"}])
            return DONE

        worker.attempt(engine)
        assert (worker.job.status, worker.job.error and worker.job.error["code"]) == ("failed", "internal")

    def test_a_result_that_does_not_parse_is_made_again(self, worker: Worker) -> None:
        def engine(folder: Path, on_tick: OnTick) -> Exit:
            package(folder)
            (folder / "model" / "report.json").write_text("[]")
            return DONE

        worker.attempt(engine)
        assert (worker.job.status, worker.job.error and worker.job.error["code"]) == ("queued", "damaged_upload")

    def test_an_outage_is_no_bug(self, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
        """PostgreSQL's standby, for the moment of a failover, refuses to write with an InternalError."""
        from psycopg.errors import ReadOnlySqlTransaction
        from sqlalchemy.exc import InternalError

        beats = list[Order]()

        def engine(folder: Path, on_tick: OnTick) -> Exit:
            with monkeypatch.context() as patch:

                def read_only(self: Database, work: Any) -> Any:
                    raise InternalError("update", {}, ReadOnlySqlTransaction("cannot execute UPDATE"))

                patch.setattr(Database, "transact", read_only)
                beats.append(on_tick([]))
            package(folder)
            return DONE

        worker.attempt(engine)
        assert (beats, worker.job.status) == ([Order.CONTINUE], "succeeded")

    def test_nor_is_one_before_the_engine_starts(self, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
        read, refused = Database.read, list[str]()

        def away_once(self: Database) -> Any:
            if not refused:
                refused.append("select")
                raise OperationalError("select", {}, Exception("terminating connection due to administrator command"))
            return read(self)

        monkeypatch.setattr(Database, "read", away_once)
        worker.attempt(succeeding)
        assert (refused, worker.job.status) == (["select"], "succeeded")


def test_a_transaction_that_is_undone_is_repeated_and_others_are_not(database: Database) -> None:
    tries = 0

    class Undone(Exception):
        sqlstate = "40P01"

    def deadlocked(session: Any) -> str:
        nonlocal tries
        tries += 1
        session.add(Tenant(id=f"ten_{tries}", name=f"t{tries}", created_at=1))
        session.flush()
        if tries < 3:
            raise OperationalError("update", {}, Undone())
        return "done"

    assert database.transact(deadlocked) == "done"
    with database.read() as session:
        assert list(session.scalars(select(Tenant.id))) == ["ten_3"]

    def broken(session: Any) -> None:
        nonlocal tries
        tries += 1
        raise OperationalError("update", {}, Exception("server closed the connection"))

    with pytest.raises(OperationalError):
        database.transact(broken)
    assert tries == 4


def test_a_locked_sqlite_is_tried_again(tmp_path: Path, migrated_sqlite: Path) -> None:
    """Some of SQLite's locks do not wait for their timeout."""
    shutil.copyfile(migrated_sqlite, tmp_path / "x.db")
    database = Database(f"sqlite:///{tmp_path}/x.db")
    refused = 0

    @event.listens_for(database.engine, "before_cursor_execute", retval=True)
    def locked(connection: Any, cursor: Any, statement: str, *rest: Any) -> Any:
        nonlocal refused
        if statement.startswith("INSERT") and refused < 2:
            refused += 1
            other = Database(f"sqlite:///{tmp_path}/x.db")
            raw = other.engine.raw_connection()
            try:
                raw.cursor().execute("pragma busy_timeout=0")
                raw.cursor().execute("begin immediate")  # we hold the lock: SQLITE_BUSY at once
            finally:
                raw.close()
                other.dispose()
        return statement, rest[0]

    database.transact(lambda session: session.add(Tenant(id="ten_1", name="one", created_at=1)))
    with database.read() as session:
        assert (refused, list(session.scalars(select(Tenant.id)))) == (2, ["ten_1"])
    database.dispose()
