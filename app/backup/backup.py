"""Back up database and store together, while the service runs.

The rows are read first, in one snapshot, then the files: a file is stored before a row names it, so the files of all
rows are there. A job that is deleted in between takes its files along; it is written down, and the restore deletes it
too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from typing import NamedTuple

import orjson
from sqlalchemy import Connection, select, tuple_

from app import migrate
from app.backup import copying, rows
from app.backup.contents import CONTENTS, FILES, BadBackup, Contents, Digested, Stored, file_key, is_within, table_key
from app.db import Database, table
from app.deployment import Deployment
from app.ids import is_id
from app.jobs.models import Artifact, Job
from app.storage import ArtifactStore, claim_of
from workers.engine import DISTRIBUTION

AT_ONCE = 8
"""Files that are copied at once."""
ROWS_AT_ONCE = 1000
"""Of which a statement asks: PostgreSQL takes 65,535 parameters."""
_artifact = table(Artifact).c


class Named(NamedTuple):
    job_id: str
    path: str
    sha256: str


class Rows:
    """The files that the snapshot names."""

    def __init__(self, connection: Connection) -> None:
        self.deployment = connection.execute(select(Deployment.id)).scalar_one_or_none()
        self.fences = {row.id: row.fence for row in connection.execute(select(Job.id, Job.fence))}
        """Job -> number of its last claim."""
        self.artifacts: dict[str, list[Named]] = defaultdict(list)
        """Key of a file -> who names it: jobs with equal files have them in one place, be it a deleted job's."""
        columns = (_artifact.key, _artifact.job_id, _artifact.path, _artifact.sha256)
        for key, *named in connection.execute(select(*columns)):
            self.artifacts[key].append(Named(*named))


def back_up(
    database: Database, store: ArtifactStore, backup: ArtifactStore, *, signing_keys: Sequence[str] = ()
) -> Contents:
    """Raises BadBackup if there is something at the target, or the schema is not this version's."""
    if store.restoring() is not None:
        raise BadBackup(f"a restore into {store.url} has not ended: run the same `espalier restore` again first")
    if is_within(backup, store) or is_within(store, backup):
        raise BadBackup(
            f"{backup.url} and the artifact store {store.url} lie in one another: give backups another place"
        )
    if next(backup.every_key(), None) is not None:
        raise BadBackup(f"{backup.url} is not empty: give each backup a folder or prefix of its own")
    with database.snapshot() as connection:
        revision = migrate.revision(connection)
        if revision is None or revision != migrate.head():
            raise BadBackup("the database's schema is not up to date: run `espalier db upgrade`")
        said = Rows(connection)
        tables: dict[str, Digested] = {
            each.name: copying.write(backup, table_key(each.name), rows.dump(connection, each))
            for each in rows.tables(connection)
        }
    copied = _copy_files(store, backup, said)
    deleted_jobs, deleted_files, missing = _absent(database, said, copied)
    needed = {key for key, by in said.artifacts.items() if any(each.job_id not in deleted_jobs for each in by)}
    kept = sorted(file for file in copied.values() if file.key in needed or _job_of(file.key) not in deleted_jobs)
    files = copying.write(backup, FILES, (orjson.dumps(file._asdict()) + b"\n" for file in kept))
    contents = Contents(
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        version=version(DISTRIBUTION),
        deployment=said.deployment,
        revision=revision,
        tables=tables,
        files=files,
        stored_bytes=sum(file.bytes for file in kept),
        deleted_jobs=sorted(deleted_jobs),
        deleted_files=sorted(deleted_files),
        missing=sorted(missing),
        damaged=sorted(
            key for key, (named, *_) in said.artifacts.items() if key in copied and copied[key].sha256 != named.sha256
        ),
        signing_keys=list(signing_keys),
    )
    backup.put_bytes(CONTENTS, orjson.dumps(contents.model_dump(), option=orjson.OPT_INDENT_2))
    return contents


def _copy_files(store: ArtifactStore, backup: ArtifactStore, said: Rows) -> dict[str, Stored]:
    """All that the store has, but of jobs and claims that the rows do not know, where they name no file of these. A
    claim that is made after the restore has the number of one that was made while files were copied, and its folder."""

    def wanted() -> Iterator[str]:
        for key in store.every_key():
            job_id = _job_of(key)
            if job_id is None or key in said.artifacts or claim_of(key) <= said.fences.get(job_id, -1):
                yield key

    def one(key: str) -> Stored | None:
        try:
            return copying.copy(store, key, backup, file_key(key), named=key)
        except FileNotFoundError:  # deleted since it was listed
            return None

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return {file.key: file for file in pool.map(one, wanted()) if file is not None}


def _absent(
    database: Database, said: Rows, copied: dict[str, Stored]
) -> tuple[set[str], list[tuple[str, str]], list[str]]:
    """Of the files that rows name and nothing was copied of: jobs deleted since, single files deleted since, and keys
    of files that are lost."""
    absent = [(key, (each.job_id, each.path)) for key, by in said.artifacts.items() if key not in copied for each in by]
    if not absent:
        return set(), [], []
    files = [file for _, file in absent]
    alive, named = set[str](), set[tuple[str, str]]()
    with database.read() as session:
        for first in range(0, len(files), ROWS_AT_ONCE):
            some = files[first : first + ROWS_AT_ONCE]
            alive |= {*session.scalars(select(Job.id).where(Job.id.in_({job_id for job_id, _ in some})))}
            still = select(Artifact.job_id, Artifact.path).where(tuple_(Artifact.job_id, Artifact.path).in_(some))
            named |= {(row.job_id, row.path) for row in session.execute(still)}
    deleted_jobs = {job_id for job_id, _ in files} - alive
    deleted_files = [file for file in files if file[0] in alive and file not in named]
    return deleted_jobs, deleted_files, sorted({key for key, file in absent if file in named})


def _job_of(key: str) -> str | None:
    """The job whose file it is; None of the store's own."""
    tenant, _, rest = key.partition("/")
    job = rest.partition("/")[0]
    return job if is_id("ten", tenant) and is_id("job", job) else None
