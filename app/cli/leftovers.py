"""The database with its artifact store, and files in it that no job owns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy.orm import Session

from app import deployment
from app.cli.admin import migrated
from app.cli.exits import CliError, Usage
from app.db import Database
from app.ids import is_id
from app.jobs import removals, upkeep_repository
from app.settings import Settings
from app.storage import ArtifactStore, StorageError
from workers import scratch


@contextmanager
def files(settings: Settings) -> Iterator[tuple[Database, ArtifactStore]]:
    """The database, at this version's schema, and the store; a refusal becomes a usage error."""
    with migrated(settings) as database:
        try:
            yield database, ArtifactStore(settings.artifacts_url)
        except deployment.Refused as error:
            raise Usage(str(error)) from None
        except (StorageError, OSError) as error:
            raise CliError(
                f"the artifact store {settings.artifacts_url} does not do what it is asked: {error}"
            ) from error


def found(settings: Settings, database: Database, store: ArtifactStore) -> dict[str, Any]:
    """Folders of the store that may be deleted, those of no job, scratch of no job, and deleted jobs that have
    files."""
    stored = [(tenant, job) for tenant, job in store.list_jobs() if is_id("ten", tenant) and is_id("job", job)]
    idle = scratch.idle(settings.work_dir)
    with database.read() as session:
        due = upkeep_repository.due_removals(session, limit=None)
        deleted = {job for _, job in stored} & upkeep_repository.deleted_job_ids(session)
        deleted -= {job for tenant, job in stored if job in deleted and _all_in_use(session, store, tenant, job)}
        unknown = removals.nobodys(session, {job for _, job in stored})
        unknown_scratch = removals.nobodys(session, idle.keys())
        of_attempts = {
            store.file_key(r.tenant_id, r.job_id, r.attempt, r.fence, "")
            for r in due
            if r.attempt is not None and r.fence is not None and not removals.keeps_whole_result(session, store, r)
        }
    of_jobs = {f"{tenant}/{job}/" for tenant, job in stored if job in deleted}
    return {
        "removable": sorted(of_jobs | of_attempts),
        "nobodys": sorted(f"{tenant}/{job}/" for tenant, job in stored if job in unknown),
        "nobodys_scratch": sorted(unknown_scratch),
        "late": sorted(deleted),
    }


def _all_in_use(session: Session, store: ArtifactStore, tenant_id: str, job_id: str) -> bool:
    """Whether other jobs share whatever is left of the job's files."""
    keys = store.job_keys(tenant_id, job_id)
    return upkeep_repository.in_use(session, keys) == set(keys)
