"""Backup and restore of database and store, between both kinds of each; and going back a schema."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from sqlalchemy import insert, text
from starlette.testclient import TestClient
from typer.testing import CliRunner

from app import deployment, migrate
from app.backup import copying
from app.backup.backup import back_up
from app.backup.contents import BadBackup, place
from app.backup.restore import restore
from app.cli import cli
from app.db import Database
from app.jobs import attempts, removals, retention, upkeep
from app.jobs.models import Artifact, Job
from app.main import create_app
from app.settings import Settings, get_settings
from app.signing.keys import KeyRing
from app.storage import ArtifactStore
from tests.helpers.api import FILES, GATED, W1, Api, others
from tests.helpers.backups import fresh_postgresql, fresh_sqlite, rows

on_one = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def target(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> str:
    """An empty database of the other kind."""
    if database_url.startswith("postgresql"):
        return fresh_sqlite(tmp_path / "restored")
    return fresh_postgresql(request.getfixturevalue("postgresql_server"))


def restored(backup: ArtifactStore, url: str, store: ArtifactStore) -> Database:
    if url.startswith("sqlite"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(exist_ok=True)
    database = Database(url)
    try:
        restore(backup, database, url, store)
    except BaseException:
        database.dispose()
        raise
    return database


@pytest.fixture
def worked(api: Api) -> Api:
    """Jobs of every kind, one of them running."""
    api.succeeded()
    api.submit(GATED, labels={"team": "ä NUL"}, priority=7)
    api.fail(api.claim())
    api.submit()
    held = api.claim()
    api.record(held, ("checkpoint", {"block": 1}))
    api.log(held, 0, "so far")
    api.submit()
    api.services.relay.stop()  # rows are compared
    return api


def test_a_backup_comes_back_in_a_database_of_the_other_kind(
    worked: Api, target: str, tmp_path: Path, s3_bucket: str, settings: Settings
) -> None:
    before = rows(worked.database)
    backup = place(str(tmp_path / "backup"))
    contents = back_up(worked.database, worked.services.store, backup)
    assert (contents.missing, contents.damaged, contents.deleted_jobs) == ([], [], [])
    worked.succeeded()  # the service goes on
    store = ArtifactStore(f"{s3_bucket}/restored")
    database = restored(backup, target, store)
    assert rows(database) == before
    again = settings.model_copy(update={"database_url": target, "artifacts_url": store.url, "home": tmp_path / "again"})
    with TestClient(create_app(again), headers=worked.client.headers) as client:
        jobs = {job["id"]: job for job in client.get("/v1/jobs").json()["data"]}
        assert sorted(job["status"] for job in jobs.values()) == ["failed", "queued", "running", "succeeded"]
        assert [job["labels"] for job in jobs.values() if job["labels"]] == [{"team": "ä NUL"}]
        (done,) = [job_id for job_id, job in jobs.items() if job["status"] == "succeeded"]
        for path, content in FILES.items():
            assert client.get(f"/v1/jobs/{done}/artifacts/{path}", follow_redirects=True).content == content
        running = next(job_id for job_id, job in jobs.items() if job["status"] == "running")
        assert "so far" in client.get(f"/v1/jobs/{running}/logs").text
        assert client.post("/v1/jobs", json={"spec": jobs[done]["spec"]}).status_code == 202  # numbers go on
    with database.write() as session:
        session.execute(text("update jobs set lease_expires_at = 1 where lease_expires_at is not null"))
        assert upkeep.reap(session, backoff_s=0) == [(running, 1)]
        claims = {attempts.claim(session, W1, ttl_s=60, overtaking_ms=0).job_id for _ in range(2)}  # type: ignore[union-attr]
    assert running in claims
    database.dispose()


def test_a_job_deleted_while_files_are_copied_is_not_restored(
    worked: Api, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked.succeed(worked.claim(), files=others())  # the one that waits
    gone, kept = worked.succeeded(others()), worked.succeeded(others())
    shared = others()
    first, second = worked.succeeded(shared), worked.succeeded(shared)
    worked.client.delete(f"/v1/jobs/{first['id']}")  # its files are the other's too
    copy = copying.copy

    def deleting(source: ArtifactStore, source_key: str, *rest: Any, **named: Any) -> Any:
        if worked.get(gone).status_code == 200:
            assert worked.client.delete(f"/v1/jobs/{gone['id']}").status_code == 204
        return copy(source, source_key, *rest, **named)

    monkeypatch.setattr(copying, "copy", deleting)
    monkeypatch.setattr("app.backup.backup.AT_ONCE", 1)
    backup = place(str(tmp_path / "backup"))
    contents = back_up(worked.database, worked.services.store, backup)
    monkeypatch.setattr(copying, "copy", copy)
    assert contents.deleted_jobs == [gone["id"]]
    store = place(str(tmp_path / "restored-store"))
    database = restored(backup, target, store)
    with database.read() as session:
        found = set(session.execute(text("select id from jobs")).scalars())
        keys = set(session.execute(text("select key from artifacts")).scalars())
        stored = session.execute(text("select sum(stored_bytes) from tenants")).scalar_one()
        sizes = session.execute(text("select distinct key, bytes from artifacts"))
        assert stored == sum(row.bytes for row in sizes)
    assert gone["id"] not in found
    assert {kept["id"], second["id"]} <= found
    assert keys <= set(store.every_key())
    assert sum(first["id"] in key for key in keys) == len(shared)
    assert not any(gone["id"] in key for key in store.every_key())
    database.dispose()


@on_one
def test_files_that_a_policy_removed_meanwhile_are_said_to_be_gone(
    worked: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked.succeed(worked.claim(), files=others())  # the one that waits
    job = worked.succeeded(others(), retention={"keep": "report"})
    every_key = ArtifactStore.every_key

    def removing(store: ArtifactStore) -> Any:
        worked.database.transact(retention.remove_next)
        removals.work_off(worked.database, worked.services.store)
        return every_key(store)

    backup = place(str(tmp_path / "backup"))
    monkeypatch.setattr(worked.services.store, "every_key", lambda: removing(worked.services.store))
    contents = back_up(worked.database, worked.services.store, backup)
    assert (contents.deleted_files, contents.missing) == ([(job["id"], "model.safetensors")], [])
    database = restored(backup, f"sqlite:///{tmp_path}/again/espalier.db", place(str(tmp_path / "store")))
    with database.read() as session:
        found = session.get_one(Job, job["id"])
        assert (found.files_removed_because, found.files_removed_at) == ("report", found.files_due_at)
        assert session.execute(text("select path from removed_artifacts")).scalars().all() == ["model.safetensors"]
        stored = session.execute(text("select sum(stored_bytes) from tenants")).scalar_one()
        sizes = session.execute(text("select distinct key, bytes from artifacts"))
        assert stored == sum(row.bytes for row in sizes)
    database.dispose()


def test_what_the_store_has_lost_is_said(worked: Api, tmp_path: Path) -> None:
    with worked.database.read() as session:
        first, second = session.execute(text("select key from artifacts order by key limit 2")).scalars()
    worked.services.store.delete([first])
    worked.services.store.put_pieces(second, [b"other bytes"])
    contents = back_up(worked.database, worked.services.store, place(str(tmp_path / "backup")))
    assert (contents.missing, contents.damaged, contents.deleted_jobs) == ([first], [second], [])


def test_what_is_left_of_a_lost_store_is_backed_up(worked: Api, tmp_path: Path) -> None:
    """A statement has no parameters for as many files as are lost."""
    with worked.database.write() as session:
        job_id = session.execute(text("select job_id from artifacts limit 1")).scalar_one()
        lost = [
            {"job_id": job_id, "path": f"{n}", "bytes": 1, "sha256": "", "key": f"{worked.tenant_id}/{job_id}/{n:05}"}
            for n in range(33_000)
        ]
        session.execute(insert(Artifact), lost)
    contents = back_up(worked.database, worked.services.store, place(str(tmp_path / "backup")))
    assert contents.missing == [file["key"] for file in lost]


@on_one
def test_a_claim_made_after_the_restore_finds_its_folder_empty(
    worked: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number is that of a claim that was made while files were copied, which had stored some under it."""
    begun: list[attempts.Claim] = []
    write, store = copying.write, worked.services.store

    def claiming(*args: Any) -> Any:
        if not begun:
            begun.append(held := worked.claim())
            scope = held.tenant_id, held.job_id, held.attempt, held.fence
            store.put_bytes(store.file_key(*scope, "model.safetensors"), b"half")
            store.put_bytes(store.log_key(*scope, 0), b"said")
        return write(*args)

    monkeypatch.setattr(copying, "write", claiming)
    backup, fresh = place(str(tmp_path / "backup")), place(str(tmp_path / "restored-store"))
    back_up(worked.database, store, backup)
    restored(backup, f"sqlite:///{tmp_path}/restored/espalier.db", fresh).dispose()
    assert list(store.job_keys(begun[0].tenant_id, begun[0].job_id))
    assert not fresh.job_keys(begun[0].tenant_id, begun[0].job_id)


def test_a_restore_that_was_cut_is_not_served_and_goes_on(
    worked: Api, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tests/chaos/test_backup_cut.py kills real ones, and fills disks."""
    before = rows(worked.database)
    backup, store = place(str(tmp_path / "backup")), place(str(tmp_path / "store"))
    back_up(worked.database, worked.services.store, backup)
    with monkeypatch.context() as patched:
        patched.setattr("app.backup.rows.continue_numbers", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            restored(backup, target, store)
    database = Database(target)
    with pytest.raises(deployment.Refused, match="cut short"):
        deployment.check(database, store)
    with pytest.raises(deployment.Refused, match="cut short"):
        deployment.adopt(database, store, tmp_path / "work", taken_from=None)
    with pytest.raises(BadBackup, match="has not ended"):
        back_up(database, store, place(str(tmp_path / "of-a-half")))
    assert not any(rows(database).values())
    database.dispose()
    worked.submit()
    other = place(str(tmp_path / "other"))
    back_up(worked.database, worked.services.store, other)
    with pytest.raises(BadBackup, match="another backup"):
        restored(other, target, store)
    copied: list[str] = []
    copy = copying.copy
    monkeypatch.setattr(copying, "copy", lambda *args, **named: copied.append(args[3]) or copy(*args, **named))
    database = restored(backup, target, store)
    assert copied == []
    assert rows(database) == before
    assert set(store.every_key()) == set(worked.services.store.every_key())
    assert deployment.check(database, store)
    database.dispose()


class TestRefusals:
    @pytest.fixture
    def backup(self, worked: Api, tmp_path: Path) -> ArtifactStore:
        made = place(str(tmp_path / "backup"))
        back_up(worked.database, worked.services.store, made)
        return made

    def refused(self, backup: ArtifactStore, url: str, store: ArtifactStore) -> str:
        with pytest.raises(BadBackup) as refusal:
            restored(backup, url, store)
        if "not empty: name an empty one (ESPALIER_DATABASE_URL)" not in str(refusal.value):
            database = Database(url)
            assert rows(database) == {} or not any(rows(database).values())
            database.dispose()
        return str(refusal.value)

    def test_of_a_target_that_is_not_empty(
        self, worked: Api, backup: ArtifactStore, database_url: str, target: str, tmp_path: Path
    ) -> None:
        with pytest.raises(BadBackup, match="is not empty"):
            back_up(worked.database, worked.services.store, backup)
        empty = place(str(tmp_path / "empty"))
        assert "ESPALIER_DATABASE_URL" in self.refused(backup, database_url, empty)
        assert "ESPALIER_ARTIFACTS_URL" in self.refused(backup, target, worked.services.store)

    @on_one
    @pytest.mark.parametrize("where", ["", "backup", "../store/x", ".."])
    def test_of_a_place_within_the_store_or_around_it(self, worked: Api, tmp_path: Path, where: str) -> None:
        """It would copy itself."""
        (tmp_path / "around/store").mkdir(parents=True)
        store = place(str(tmp_path / "around/store"))
        with pytest.raises(BadBackup, match="in one another"):
            back_up(worked.database, store, place(f"{tmp_path}/around/store/{where}"))
        assert not list((tmp_path / "around").rglob("*.json*"))

    @on_one
    @pytest.mark.parametrize("name", ["database/jobs.jsonl", "files.jsonl", "store/espalier-deployment"])
    def test_of_damage(self, backup: ArtifactStore, target: str, tmp_path: Path, name: str) -> None:
        path = tmp_path / "backup" / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        assert f"{name} is not what was written" in self.refused(backup, target, place(str(tmp_path / "empty")))

    @on_one
    @pytest.mark.parametrize("name", ["database/jobs.jsonl", "files.jsonl", "store/espalier-deployment", "backup.json"])
    def test_of_what_is_not_complete(self, backup: ArtifactStore, target: str, tmp_path: Path, name: str) -> None:
        (tmp_path / "backup" / name).unlink()
        assert name in self.refused(backup, target, place(str(tmp_path / "empty")))

    @on_one
    @pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/b"])
    def test_of_tables_that_are_paths(self, backup: ArtifactStore, target: str, tmp_path: Path, name: str) -> None:
        path = tmp_path / "backup/backup.json"
        contents = json.loads(path.read_text())
        contents["tables"][name] = contents["tables"]["jobs"]
        path.write_text(json.dumps(contents))
        assert "cannot be read" in self.refused(backup, target, place(str(tmp_path / "empty")))

    @on_one
    @pytest.mark.parametrize(
        "line",
        [
            *('{"key": "../outside", "bytes": 1, "sha256": "0"}', '{"key": "a/../../b", "bytes": 1, "sha256": "0"}'),
            *('{"key": 3, "bytes": 1, "sha256": "0"}', '{"key": "a"}', "[]", "3", "{"),
        ],
    )
    def test_of_files_that_lie_outside(self, backup: ArtifactStore, target: str, tmp_path: Path, line: str) -> None:
        files, path = (f"{line}\n".encode(), tmp_path / "backup/backup.json")
        (tmp_path / "backup/files.jsonl").write_bytes(files)
        contents = json.loads(path.read_text())
        contents["files"] = {"lines": 1, "bytes": len(files), "sha256": hashlib.sha256(files).hexdigest()}
        path.write_text(json.dumps(contents))
        assert "files.jsonl" in self.refused(backup, target, place(str(tmp_path / "empty")))

    @on_one
    def test_of_a_newer_version(self, backup: ArtifactStore, target: str, tmp_path: Path) -> None:
        path = tmp_path / "backup/backup.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "revision": "9999"}))
        assert "does not know" in self.refused(backup, target, place(str(tmp_path / "empty")))


class TestCommands:
    @pytest.fixture(autouse=True)
    def _settings(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Any:
        for name in ("home", "database_url", "secret_key"):
            value = getattr(settings, name)
            shown = value if isinstance(value, str | Path) else value.get_secret_value()
            monkeypatch.setenv(f"ESPALIER_{name.upper()}", str(shown))
        get_settings.cache_clear()
        yield
        get_settings.cache_clear()

    def run(self, *arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli, arguments)
        return result.exit_code, result.output

    def test_back_up_and_restore(
        self, worked: Api, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        code, said = self.run("backup", str(tmp_path / "backup"))
        assert (code, "not in it: the secret key" in said) == (0, True)
        assert self.run("backup", str(tmp_path / "backup"))[0] == 2
        monkeypatch.setenv("ESPALIER_DATABASE_URL", target)
        monkeypatch.setenv("ESPALIER_ARTIFACTS_URL", f"file://{tmp_path}/restored-store")
        get_settings.cache_clear()
        assert self.run("restore", str(tmp_path / "nothing"))[0] == 2
        assert self.run("restore", str(tmp_path / "backup"), "--json")[0] == 0
        database = Database(target)
        assert rows(database) == rows(worked.database)
        database.dispose()

    @on_one
    @pytest.mark.parametrize("kept", [False, True])
    def test_a_restore_says_which_signing_keys_are_missing(
        self, worked: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
    ) -> None:
        (key,) = KeyRing(worked.services.signing.path, make=True).all()
        assert self.run("backup", str(tmp_path / "backup"))[0] == 0
        monkeypatch.setenv("ESPALIER_HOME", str(tmp_path / "again"))
        monkeypatch.setenv("ESPALIER_DATABASE_URL", fresh_sqlite(tmp_path / "again"))
        if kept:
            shutil.copy(worked.services.signing.path, tmp_path / "again" / worked.services.signing.path.name)
        get_settings.cache_clear()
        code, said = self.run("restore", str(tmp_path / "backup"))
        assert (code, "lacks keys that had signed" in said, key.kid in said) == (0, not kept, not kept)

    def test_go_back_a_schema(self, worked: Api, settings: Settings) -> None:
        worked.services.relay.stop()
        now = migrate.head()
        code, said = self.run("db", "downgrade", "0001")
        assert code == 2
        assert "loses column verdict of table jobs" not in said  # no job has one
        assert "loses table deployment: 1 rows" in said
        assert "loses column asked_by of table jobs: 4 rows" in said
        assert migrate.current(worked.database) == now
        for bad in ("9999", str(now), "head+1"):
            assert self.run("db", "downgrade", bad, "--yes")[0] == 2
        code, said = self.run("db", "downgrade", "--yes")
        assert code == 0, said
        assert migrate.current(worked.database) == migrate.before(str(now))
        assert self.run("db", "upgrade")[0] == 0
        assert migrate.current(worked.database) == now

    def test_going_back_behind_shared_files_gives_each_job_its_own(self, worked: Api) -> None:
        """The version of that schema deletes a job's folder whole."""
        worked.succeed(worked.claim(), files=others())
        first, second = worked.succeeded(shared := others()), worked.succeeded(shared)
        kept = worked.succeeded(shared)
        worked.client.delete(f"/v1/jobs/{first['id']}")
        worked.services.relay.stop()
        copies = 2 * (len(shared) - ("manifest.json" in shared))
        assert f"copies {copies} files" in self.run("db", "downgrade", "0014")[1]
        code, said = self.run("db", "downgrade", "0014", "--yes")
        assert (code, f"copied {copies} files" in said) == (0, True), said
        with worked.database.engine.connect() as connection:
            found = connection.execute(text("select job_id, path, key from artifacts")).all()
            stored = connection.execute(text("select sum(bytes) from artifacts")).scalar_one()
            assert connection.execute(text("select sum(stored_bytes) from tenants")).scalar_one() == stored
        assert {second["id"], kept["id"]} <= {row.job_id for row in found}
        assert not worked.services.store.job_keys(worked.tenant_id, first["id"])
        for row in found:
            assert row.job_id in row.key
            assert row.job_id not in (second["id"], kept["id"]) or worked.services.store.read(row.key)
        assert self.run("db", "upgrade")[0] == 0


def test_a_file_of_several_parts_is_copied_whole(tmp_path: Path, s3_bucket: str) -> None:
    content = bytes(range(256)) * 4096 * 12
    source, target = place(str(tmp_path)), place(s3_bucket)
    source.put_pieces("a", iter([content[:100], content[100:]]))
    assert copying.copy(source, "a", target, "b", named="a").bytes == len(content)
    assert target.read("b") == content
