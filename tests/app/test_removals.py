"""The reconciler deletes files that the database recorded for removal, and no others. On both databases."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, func, select, text
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from app.cli import cli
from app.db import now_ms
from app.ids import new_id
from app.jobs import attempts, removals
from app.jobs.attempts import Claim
from app.jobs.models import FileRemoval, Job
from app.settings import Settings
from app.storage import StorageError
from tests.helpers.api import FILES, Api, others
from workers import scratch
from workers.reconciler import Reconciler


@pytest.fixture
def reconciler(api: Api, settings: Settings) -> Iterator[Reconciler]:
    """It shares the API's store object, so that a test can break it."""
    made = Reconciler(settings)
    made.store = api.services.store
    yield made
    made.database.dispose()


def clean(reconciler: Reconciler) -> None:
    reconciler.reap()
    reconciler.remove_files()
    reconciler.sweep_scratch()
    reconciler.forget_removals()


def upload(api: Api, held: Claim, *names: str) -> None:
    for name in names:
        api.services.store.put_bytes(api.services.store.file_key(*where(held), name), b"x")


def where(held: Claim) -> tuple[str, str, int, int]:
    return held.tenant_id, held.job_id, held.attempt, held.fence


def stored(settings: Settings) -> set[str]:
    folder = settings.home / "artifacts"
    return {str(p.relative_to(folder)) for p in folder.glob("*/**/*") if p.is_file()}


def expire(api: Api) -> None:
    with api.database.write() as session:
        session.execute(text("update jobs set lease_expires_at = 1 where lease_expires_at is not null"))


def pending(api: Api) -> int:
    with api.database.read() as session:
        return session.execute(select(func.count()).where(FileRemoval.done_at.is_(None))).scalar_one()


def make_scratch(settings: Settings, job_id: str) -> Path:
    """Scratch that has been idle for two days."""
    folder = scratch.checkpoint_dir(settings.work_dir, job_id)
    folder.mkdir(parents=True)
    for path in (folder, folder.parent):
        os.utime(path, (1, 1))
    return folder.parent


class TestStore:
    def test_a_missing_row_is_no_reason(self, api: Api, settings: Settings, reconciler: Reconciler) -> None:
        """Files of a job that this database never had, or had after the backup it was restored from."""
        mine = api.succeeded(others())
        newer = api.succeeded(others())
        with api.database.write() as session:
            session.execute(delete(Job).where(Job.id == newer["id"]))  # as a restored backup has it
        api.services.store.put_bytes(f"{new_id('ten')}/{new_id('job')}/0001-000001/files/model.safetensors", b"theirs")
        api.services.store.put_bytes("photos/2026/summer.jpg", b"not even ours")
        before = stored(settings)
        clean(reconciler)
        assert stored(settings) == before
        assert sum(mine["id"] in path for path in before) == sum(newer["id"] in path for path in before) == len(FILES)

    def test_a_deletion_that_was_interrupted_is_finished(
        self, api: Api, settings: Settings, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job, kept = api.succeeded(others()), api.succeeded(others())

        def away(*args: str) -> None:
            raise StorageError("no answer")

        with monkeypatch.context() as broken:
            broken.setattr(api.services.store, "delete_job", away)
            assert api.client.delete(f"/v1/jobs/{job['id']}").status_code == 204
            clean(reconciler)
            assert pending(api) == 1
        clean(reconciler)
        assert (pending(api), {path.split("/")[1] for path in stored(settings)}) == (0, {kept["id"]})

    def test_some_that_cannot_be_removed_hold_up_no_others(
        self, api: Api, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with api.database.write() as session:
            for tenant in ("stuck",) * 101 + (api.tenant_id,):
                session.add(FileRemoval(tenant_id=tenant, job_id=new_id("job"), recorded_at=1))
        removed = []

        def stuck_for_one(tenant_id: str, *args: Any) -> None:
            if tenant_id == "stuck":
                raise StorageError("permission denied")
            removed.append(tenant_id)

        monkeypatch.setattr(api.services.store, "delete_job", stuck_for_one)
        reconciler.remove_files()
        assert (removed, pending(api)) == ([api.tenant_id], 101)

    def test_a_sweep_that_was_deleted_without_a_store_is_finished(
        self, api: Api, settings: Settings, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sweep = api.client.post(
            "/v1/sweeps",
            json={
                "spec": {
                    "model": {"id": "bookworm-7m"},
                    "score": {"method": "magnitude"},
                    "prune": {"method": "mask"},
                },
                "grid": {"/prune/sparsity": [0.4, 0.5]},
            },
        ).json()
        for _ in sweep["children"]:
            api.succeed(api.claim(), files=others())
        asked = []

        def away(*args: str) -> None:
            asked.append(args)
            raise StorageError("no answer")

        with monkeypatch.context() as broken:
            broken.setattr(api.services.store, "delete_job", away)
            broken.setattr(removals, "CLIENT_WAITS_S", 0)
            broken.setattr("workers.reconciler.TURN_S", 0)
            assert api.client.delete(sweep["links"]["self"]).status_code == 204
            assert len(asked) == 1  # it may take a minute to say so, and neither a client nor a lease has two
            reconciler.remove_files()
            assert len(asked) == 2
        assert len(stored(settings)) == 2 * len(FILES)
        clean(reconciler)
        assert stored(settings) == set()

    def test_a_lost_attempts_upload_goes_and_its_log_stays(
        self, api: Api, settings: Settings, reconciler: Reconciler
    ) -> None:
        api.submit()
        held = api.claim()
        api.log(held, 0, "words\n")
        upload(api, held, "model.safetensors")
        expire(api)
        clean(reconciler)
        assert [path.rpartition("/")[2] for path in stored(settings)] == ["000000.log"]

    def test_an_attempt_that_succeeded_after_the_backup_keeps_its_result(
        self, api: Api, settings: Settings, reconciler: Reconciler
    ) -> None:
        """The restored database thinks it is still running, and reaps it."""
        api.submit()
        held = api.claim()
        upload(api, held, "model.safetensors", "manifest.json")
        expire(api)
        clean(reconciler)
        assert len(stored(settings)) == 2
        assert pending(api) == 0

    def test_a_running_attempts_upload_stays(self, api: Api, settings: Settings, reconciler: Reconciler) -> None:
        api.submit()
        upload(api, api.claim(), "model.safetensors")
        clean(reconciler)
        assert len(stored(settings)) == 1

    def test_rows_are_forgotten_after_a_month(self, api: Api, reconciler: Reconciler) -> None:
        for _ in range(2):
            api.client.delete(f"/v1/jobs/{api.succeeded()['id']}")
        with api.database.write() as session:
            [first, _] = session.scalars(select(FileRemoval).order_by(FileRemoval.id))
            first.done_at = session.scalars(select(now_ms())).one() - removals.KEPT_MS - 1
        clean(reconciler)
        with api.database.read() as session:
            assert session.execute(select(func.count()).select_from(FileRemoval)).scalar_one() == 1


class TestRecords:
    def test_are_written_with_what_they_follow_from(self, api: Api) -> None:
        """Of every end but a success; a transaction that fails leaves none."""
        api.submit()
        held = api.claim()

        def half_done(session: Session) -> None:
            attempts.release(session, held)
            raise RuntimeError

        with pytest.raises(RuntimeError):
            api.database.transact(half_done)
        assert pending(api) == 0
        with api.database.write() as session:
            attempts.release(session, held)
        assert pending(api) == 1
        removals.work_off(api.database, api.services.store)
        api.succeed(api.claim())
        assert pending(api) == 0

    def test_tell_a_lost_attempt_from_one_whose_success_was_not_answered(self, api: Api) -> None:
        api.submit()
        held = api.claim()
        with api.database.read() as session:
            assert not attempts.ended_without_result(session, held)
        api.succeed(held)
        with api.database.read() as session:
            assert not attempts.ended_without_result(session, held)
        api.client.delete(f"/v1/jobs/{held.job_id}")
        with api.database.read() as session:
            assert attempts.ended_without_result(session, held)
            unheard_of = replace(held, job_id=new_id("job"))
            assert not attempts.ended_without_result(session, unheard_of)


class TestScratch:
    def test_of_jobs_it_does_not_know_stays(self, api: Api, settings: Settings, reconciler: Reconciler) -> None:
        strangers = make_scratch(settings, new_id("job"))
        clean(reconciler)
        assert strangers.exists()

    def test_of_ended_and_deleted_jobs_goes(self, api: Api, settings: Settings, reconciler: Reconciler) -> None:
        ended, deleted, queued = api.succeeded(), api.succeeded(), api.submit()
        api.client.delete(f"/v1/jobs/{deleted['id']}")
        folders = {job["id"]: make_scratch(settings, job["id"]) for job in (ended, deleted, queued)}
        clean(reconciler)
        assert [job_id for job_id, folder in folders.items() if folder.exists()] == [queued["id"]]

    def test_of_a_failed_job_waits_a_day_for_a_retry(
        self, api: Api, settings: Settings, reconciler: Reconciler
    ) -> None:
        job = api.submit()
        api.fail(api.claim())
        folder = make_scratch(settings, job["id"])
        for path in (folder, folder / "checkpoint"):
            os.utime(path)
        clean(reconciler)
        assert folder.exists()
        for path in (folder, folder / "checkpoint"):
            os.utime(path, (1, 1))
        clean(reconciler)
        assert not folder.exists()


class TestGc:
    @pytest.fixture(autouse=True)
    def _same_settings(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("app.settings.get_settings", lambda: settings)

    def run(self, *arguments: str) -> dict[str, list[str]]:
        result = CliRunner().invoke(cli, ["gc", *arguments, "--json"])
        assert result.exit_code == 0, result.output
        return dict(json.loads(result.output))

    def test_shows_what_would_go_and_what_is_nobodys(
        self, api: Api, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kept, deleted = api.succeeded(others()), api.succeeded(others())
        with monkeypatch.context() as broken:
            broken.setattr(removals, "work_off_now", lambda *_: None)
            api.client.delete(f"/v1/jobs/{deleted['id']}")
        stranger = f"{new_id('ten')}/{new_id('job')}/"
        api.services.store.put_bytes(f"{stranger}0001-000001/files/x", b"theirs")
        scratch_of_nobody = make_scratch(settings, new_id("job"))
        before = stored(settings)
        removable = [f"{api.tenant_id}/{deleted['id']}/"]
        found = self.run("--dry-run")
        assert found == {"removable": removable, "nobodys": [stranger], "nobodys_scratch": [scratch_of_nobody.name]}
        assert stored(settings) == before
        assert self.run() == found
        assert stored(settings) == {path for path in before if deleted["id"] not in path}
        assert self.run("--dry-run") == {**found, "removable": []}
        assert any(kept["id"] in path for path in before)
        assert scratch_of_nobody.exists()

    def test_finds_what_was_uploaded_after_the_deletion(self, api: Api, settings: Settings) -> None:
        """By a worker that was frozen meanwhile."""
        job = api.submit()
        held = api.claim()
        api.succeed(held)
        api.client.delete(f"/v1/jobs/{job['id']}")
        upload(api, held, "late")
        assert len(self.run()["removable"]) == 1
        assert stored(settings) == set()
