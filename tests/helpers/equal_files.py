"""Results with few contents of files among them, and whether each file is stored as it should be."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db import Database
from app.jobs import attempts, removals
from app.jobs.attempts import Claim
from app.jobs.models import Artifact
from app.keys.models import Tenant
from app.storage import ArtifactStore, attempt_of
from tests.helpers.job_life import REPORT
from workers.engine.report import FileEntry


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(
        f"file://{tmp_path}/store" if request.param == "local" else request.getfixturevalue("s3_bucket")
    )


def upload(store: ArtifactStore, held: Claim, files: Mapping[str, bytes]) -> list[tuple[FileEntry, str]]:
    found = []
    for path, content in {**files, "manifest.json": held.job_id.encode()}.items():
        key = store.file_key(held.tenant_id, held.job_id, held.attempt, held.fence, path)
        store.put_bytes(key, content)
        found.append((FileEntry(path=path, bytes=len(content), sha256=hashlib.sha256(content).hexdigest()), key))
    return found


def succeed(session: Session, held: Claim, files: list[tuple[FileEntry, str]], **more: list[str]) -> None:
    attempts.succeed(session, held, report=REPORT, manifest_sha256="0" * 64, files=files, **more)


def keys(store: ArtifactStore) -> list[str]:
    return [key for key in store._list(None) if attempt_of(key)]


def check(database: Database, store: ArtifactStore) -> None:
    """Every file that a result names is there, each once, nothing else is, and what is counted is what is stored.

    But for whole results of attempts that were killed before their last commit: those stay
    (removals.keeps_whole_result).
    """
    with database.read() as session:
        rows = session.scalars(select(Artifact)).all()
        counted = session.execute(select(func.sum(Tenant.stored_bytes))).scalar_one()
    for row in rows:
        assert hashlib.sha256(store.read(row.key)).hexdigest() == row.sha256
    named = {row.key for row in rows}
    uncommitted = {attempt_of(key) for key in keys(store) if key.endswith(removals.LAST_FILE) and key not in named}
    found = [key for key in keys(store) if attempt_of(key) not in uncommitted or key in named]
    assert sorted(found) == sorted(named)
    assert counted == sum(store.size(key) or 0 for key in found)
