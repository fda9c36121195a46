"""A result that reaches the store damaged is not the job's: the attempt fails and is made again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from app.db import Database
from app.jobs.models import Artifact
from app.jobs.models import Attempt as AttemptRow
from app.settings import Settings
from app.storage import ArtifactStore
from tests.helpers.job_life import REPORT, claimed, status, submit
from workers.engine.files.manifest import file_entries
from workers.engine.report import Manifest
from workers.supervisor import Exit, Order
from workers.tasks import Attempt


def cut_short(stored: Path) -> None:
    stored.write_bytes(stored.read_bytes()[:-3])


def turned(stored: Path) -> None:
    content = bytearray(stored.read_bytes())
    content[7] ^= 1
    stored.write_bytes(content)


@pytest.mark.parametrize("damage", [None, cut_short, turned, Path.unlink])
def test_what_is_stored_is_what_was_made_before_the_job_succeeds(
    damage: Callable[[Path], None] | None,
    database: Database,
    tenant: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Settings(home=tmp_path)
    job_id, store = submit(database, tenant), ArtifactStore(f"file://{tmp_path}/artifacts")
    put_file = store.put_file

    def put(key: str, path: Path) -> None:
        put_file(key, path)
        if damage is not None and path.name == "model.safetensors":
            damage(tmp_path / "artifacts" / key)

    monkeypatch.setattr(store, "put_file", put)
    attempt = Attempt(settings, database, store, claimed(database))
    folder = attempt.folder / "model"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(1000))
    (folder / "report.json").write_text(REPORT.model_dump_json())
    made = Manifest(spec={}, provenance=REPORT.provenance, stages=[], files=file_entries(folder))
    (folder / "manifest.json").write_text(made.model_dump_json())
    monkeypatch.setattr(attempt, "_compress", lambda: Exit(Order.CONTINUE, 0, "package", None, False))
    attempt.run()
    if damage is None:
        assert status(database, job_id) == "succeeded"
        return
    assert status(database, job_id) == "queued", "to be tried again"
    with database.read() as session:
        error = session.scalars(select(AttemptRow.error)).one()
    found = error if isinstance(error, dict) else json.loads(error)
    assert (found["code"], found["retryable"]) == ("damaged_upload", True)
    assert "model.safetensors" in found["message"]
    assert not [path for path in (tmp_path / "artifacts").rglob("files/*") if path.is_file()]


@pytest.mark.parametrize("name", ["manifest.json", "report.json"])
def test_a_result_that_cannot_be_read_any_more_is_made_again(
    name: str, database: Database, tenant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id, store = submit(database, tenant), ArtifactStore(f"file://{tmp_path}/artifacts")
    attempt = Attempt(Settings(home=tmp_path), database, store, claimed(database))
    folder = attempt.folder / "model"
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(REPORT.model_dump_json())
    made = Manifest(spec={}, provenance=REPORT.provenance, stages=[], files=file_entries(folder))
    (folder / "manifest.json").write_text(made.model_dump_json())
    cut_short(folder / name)
    monkeypatch.setattr(attempt, "_compress", lambda: Exit(Order.CONTINUE, 0, "package", None, False))
    attempt.run()
    assert status(database, job_id) == "queued", "to be tried again"


@pytest.mark.parametrize("damage", [None, cut_short, turned, Path.unlink])
def test_a_file_that_another_job_has_is_stored_once_unless_that_one_is_damaged(
    damage: Callable[[Path], None] | None,
    database: Database,
    tenant: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = ArtifactStore(f"file://{tmp_path}/artifacts")

    def publish() -> str:
        job_id = submit(database, tenant)
        attempt = Attempt(Settings(home=tmp_path), database, store, claimed(database))
        folder = attempt.folder / "model"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(bytes(1000))
        (folder / "report.json").write_text(REPORT.model_copy(update={"warnings": [job_id]}).model_dump_json())
        made = Manifest(spec={}, provenance=REPORT.provenance, stages=[], files=file_entries(folder))
        (folder / "manifest.json").write_text(made.model_dump_json())
        monkeypatch.setattr(attempt, "_compress", lambda: Exit(Order.CONTINUE, 0, "package", None, False))
        attempt.run()
        assert status(database, job_id) == "succeeded"
        return job_id

    def weights() -> list[Path]:
        return sorted((tmp_path / "artifacts").rglob("model.safetensors"))

    first = publish()
    [path] = weights()
    if damage is not None:
        damage(path)
    second = publish()
    with database.read() as session:
        rows = session.scalars(select(Artifact).where(Artifact.path == "model.safetensors")).all()
        keys = {row.job_id: row.key for row in rows}
    assert (keys[first] == keys[second]) == (damage is None)
    assert store.read(keys[second]) == bytes(1000)
    assert len(weights()) == (1 if damage in (None, Path.unlink) else 2)
