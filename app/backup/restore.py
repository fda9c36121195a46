"""Restore a backup into an empty database, of either kind, and an empty store.

The files first, then the rows in one transaction: whoever finds the rows finds the files. From before the first file
until after the last step the store says which backup is being restored into it: as long as it does no process starts on
it, and the same restore again goes on where the one before was cut.
"""

from __future__ import annotations

import hashlib
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sqlalchemy import Connection, case, delete, func, insert, select, update

from app import migrate
from app.backup import copying, rows
from app.backup.backup import AT_ONCE
from app.backup.contents import (
    CONTENTS,
    FILES,
    BadBackup,
    Contents,
    Stored,
    contents_of,
    file_key,
    lines,
    stored_of,
    table_key,
)
from app.db import Database, table
from app.jobs.models import Artifact, Job, RemovedArtifact
from app.keys.models import Tenant
from app.storage import ArtifactStore


def restore(backup: ArtifactStore, database: Database, url: str, store: ArtifactStore) -> Contents:
    """Raises BadBackup if it is not whole or not for this version, or if there is anything else where it is to go."""
    contents = contents_of(backup)
    if not migrate.is_known(contents.revision):
        raise BadBackup(
            f"it was made by espalier {contents.version}, whose schema ({contents.revision}) this version does not know"
        )
    this, begun = hashlib.sha256(backup.read(CONTENTS)).hexdigest(), store.restoring()
    if begun not in (None, this):
        raise BadBackup(
            f"a restore of another backup into {store.url} was cut short: run that one again, or empty the store"
        )
    if begun is None and next(store.every_key(), None) is not None:
        raise BadBackup(f"the artifact store {store.url} is not empty: name an empty one (ESPALIER_ARTIFACTS_URL)")
    with database.snapshot() as connection:
        loaded = not rows.is_empty(connection)
        if loaded and not (begun and _is_loaded(connection, contents)):
            raise BadBackup("the database is not empty: name an empty one (ESPALIER_DATABASE_URL)")
    if not loaded:
        _write(backup, database, url, store, contents, this)
    migrate.upgrade(url)
    store.end_restoring()
    return contents


def _is_loaded(connection: Connection, contents: Contents) -> bool:
    """Whether the rows are this backup's: they are written in one transaction, and nobody starts to work on them."""

    def count(name: str) -> int:
        return connection.execute(select(func.count()).select_from(named[name])).scalar_one()

    named = {each.name: each for each in rows.tables(connection)}
    if not {"deployment", "jobs", "tenants"} <= named.keys() & contents.tables.keys():
        return False
    jobs = contents.tables["jobs"].lines - len(contents.deleted_jobs)
    tenants = contents.tables["tenants"].lines
    of = connection.execute(select(named["deployment"].c.id)).scalar_one_or_none()
    return (of, count("jobs"), count("tenants")) == (contents.deployment, jobs, tenants)


def _write(
    backup: ArtifactStore, database: Database, url: str, store: ArtifactStore, contents: Contents, this: str
) -> None:
    with tempfile.TemporaryDirectory(prefix="espalier-restore-") as folder:
        for name, expected in contents.tables.items():  # all are whole before anything is written
            with (Path(folder) / name).open("wb") as file:
                file.writelines(copying.checked(backup, table_key(name), expected))
        store.begin_restoring(this)
        _copy_files(backup, store, contents)
        migrate.to(url, contents.revision)
        with database.engine.begin() as connection:
            _load(connection, Path(folder), contents)


def _copy_files(backup: ArtifactStore, store: ArtifactStore, contents: Contents) -> None:
    def one(file: Stored) -> None:
        if copying.is_there(store, file):  # of a restore that was cut
            return
        try:
            copied = copying.copy(backup, file_key(file.key), store, file.key, named=file.key)
        except FileNotFoundError:
            raise BadBackup(f"{file_key(file.key)} is missing") from None
        if copied != file:
            raise BadBackup(f"{file_key(file.key)} is not what was written: its sha256 is {copied.sha256}")

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = lines(copying.checked(backup, FILES, contents.files))
        for _ in pool.map(one, [stored_of(line) for line in found]):
            pass


def _load(connection: Connection, folder: Path, contents: Contents) -> None:
    for each in rows.tables(connection):
        if each.name in contents.tables:
            with (folder / each.name).open("rb") as file:
                rows.load(connection, each, file)
    job, artifact = table(Job).c, table(Artifact).c
    for job_id in contents.deleted_jobs:
        connection.execute(delete(table(Job)).where(job.id == job_id))
    for job_id, path in contents.deleted_files:
        mine = (artifact.job_id == job_id) & (artifact.path == path)
        gone = select(artifact.job_id, artifact.path, artifact.bytes, artifact.sha256).where(mine)
        connection.execute(insert(table(RemovedArtifact)).from_select(["job_id", "path", "bytes", "sha256"], gone))
        connection.execute(delete(table(Artifact)).where(mine))
        connection.execute(
            update(table(Job))
            .where(job.id == job_id, job.files_removed_at.is_(None))
            .values(
                files_removed_at=func.coalesce(job.files_due_at, job.finished_at),
                files_removed_because=case((job.keep == "all", "limit"), else_=job.keep),
            )
        )
    if contents.deleted_jobs or contents.deleted_files:
        _count_stored(connection)


def _count_stored(connection: Connection) -> None:
    """The bytes of each tenant's results, equal files once."""
    job, artifact, tenant = table(Job).c, table(Artifact).c, table(Tenant).c
    files = (
        select(job.tenant_id, artifact.key, artifact.bytes)
        .join_from(table(Artifact), table(Job), job.id == artifact.job_id)
        .distinct()
        .subquery()
    )
    stored = select(func.coalesce(func.sum(files.c.bytes), 0)).where(files.c.tenant_id == tenant.id).scalar_subquery()
    connection.execute(update(table(Tenant)).values(stored_bytes=stored))
