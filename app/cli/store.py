"""Commands of the operator for files: which may be deleted, which no job owns, and which deployment the store is of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from app import deployment
from app.cli import output
from app.cli.admin import migrated
from app.cli.exits import Usage
from app.cli.options import AsJson, load_settings
from app.db import Database
from app.ids import is_id
from app.jobs import removals, upkeep_repository
from app.settings import Settings
from app.storage import ArtifactStore
from workers import scratch


@contextmanager
def _files(settings: Settings) -> Iterator[tuple[Database, ArtifactStore]]:
    with migrated(settings) as database:
        try:
            yield database, ArtifactStore(settings.artifacts_url)
        except deployment.Refused as error:
            raise Usage(str(error)) from None


def adopt_store(
    taken_from: Annotated[
        str | None, typer.Option("--from", metavar="DEPLOYMENT", help="The id the store carries, if it has another.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make the artifact store this database's, with all that is in it. Deletes nothing.

    For a store from before deployments had ids, one that was moved, or one whose database is gone for good.
    """
    settings = load_settings()
    with _files(settings) as (database, store):
        deployment_id = deployment.adopt(database, store, settings.work_dir, taken_from=taken_from)
    if as_json:
        output.print_json({"deployment": deployment_id, "store": settings.artifacts_url})
    else:
        output.stdout.print(f"{settings.artifacts_url} belongs to deployment {deployment_id}", markup=False)


def gc(
    dry_run: Annotated[bool, typer.Option(help="Only show; delete nothing.")] = False, as_json: AsJson = False
) -> None:
    """Delete the files of deleted jobs and of attempts without a result, as the reconciler does, and list the others.

    Files of jobs that this database neither has nor has deleted are nobody's: they are listed and never deleted. This
    host's work folder is only looked at; the reconciler clears it.
    """
    settings = load_settings()
    with _files(settings) as (database, store):
        deployment.check(database, store)
        found = _found(settings, database, store)
        if not dry_run:
            database.transact(lambda session: removals.due_again(session, found["late"]))
            while removals.work_off(database, store):
                pass
    if as_json:
        output.print_json({name: found[name] for name in ("removable", "nobodys", "nobodys_scratch")})
        return
    verb = "would be deleted" if dry_run else "deleted"
    for title, paths in (
        (f"{verb}, in {settings.artifacts_url}", found["removable"]),
        (f"nobody's, kept, in {settings.artifacts_url}", found["nobodys"]),
        (f"nobody's, kept, in {settings.work_dir}", found["nobodys_scratch"]),
    ):
        output.stdout.print(f"{len(paths)} {title}", markup=False)
        for path in paths:
            output.stdout.print(f"  {path}", markup=False)


def _found(settings: Settings, database: Database, store: ArtifactStore) -> dict[str, Any]:
    """Folders of the store that may be deleted, those of no job, scratch of no job, and deleted jobs that have
    files."""
    stored = [(tenant, job) for tenant, job in store.list_jobs() if is_id("ten", tenant) and is_id("job", job)]
    idle = scratch.idle(settings.work_dir)
    with database.read() as session:
        due = upkeep_repository.due_removals(session, limit=None)
        deleted = {job for _, job in stored} & upkeep_repository.deleted_job_ids(session)
        unknown = removals.nobodys(session, {job for _, job in stored})
        unknown_scratch = removals.nobodys(session, idle.keys())
    of_jobs = {f"{tenant}/{job}/" for tenant, job in stored if job in deleted}
    of_attempts = {
        store.file_key(r.tenant_id, r.job_id, r.attempt, r.fence, "")
        for r in due
        if r.attempt is not None and r.fence is not None and not removals.keeps_whole_result(store, r)
    }
    return {
        "removable": sorted(of_jobs | of_attempts),
        "nobodys": sorted(f"{tenant}/{job}/" for tenant, job in stored if job in unknown),
        "nobodys_scratch": sorted(unknown_scratch),
        "late": sorted(deleted),
    }
