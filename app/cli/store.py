"""Commands of the operator for files: which may be deleted, which no job owns, and which deployment the store is of."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli import output
from app.cli.extras import needs
from app.cli.options import AsJson, load_settings


@needs("api")
def adopt_store(
    taken_from: Annotated[
        str | None, typer.Option("--from", metavar="DEPLOYMENT", help="The id the store carries, if it has another.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make the artifact store this database's, with all that is in it. Deletes nothing.

    For a store from before deployments had ids, one that was moved, or one whose database is gone for good.
    """
    from app import deployment
    from app.cli.leftovers import files

    settings = load_settings()
    with files(settings) as (database, store):
        deployment_id = deployment.adopt(database, store, settings.work_dir, taken_from=taken_from)
    if as_json:
        output.print_json({"deployment": deployment_id, "store": settings.artifacts_url})
    else:
        output.stdout.print(f"{settings.artifacts_url} belongs to deployment {deployment_id}")


@needs("api")
def gc(
    dry_run: Annotated[bool, typer.Option(help="Only show; delete nothing.")] = False, as_json: AsJson = False
) -> None:
    """Delete the files of deleted jobs, of attempts without a result, and those that retention policies have removed,
    as the reconciler does, and list the others.

    A file that several jobs share stays until the last of them is deleted. Files of jobs that this database neither has
    nor has deleted are nobody's: they are listed and never deleted. This host's work folder is only looked at; the
    reconciler clears it.
    """
    from app import deployment
    from app.cli import leftovers
    from app.jobs import removals

    settings = load_settings()
    with leftovers.files(settings) as (database, store):
        deployment.check(database, store)
        found = leftovers.found(settings, database, store)
        if not dry_run:
            database.transact(lambda session: removals.due_again(session, found["late"]))
            removals.work_off(database, store)
    if as_json:
        output.print_json({name: found[name] for name in ("removable", "nobodys", "nobodys_scratch")})
        return
    verb = "would be deleted" if dry_run else "deleted"
    for title, paths in (
        (f"{verb}, in {settings.artifacts_url}", found["removable"]),
        (f"nobody's, kept, in {settings.artifacts_url}", found["nobodys"]),
        (f"nobody's, kept, in {settings.work_dir}", found["nobodys_scratch"]),
    ):
        output.stdout.print(f"{len(paths)} {title}")
        for path in paths:
            output.stdout.print(f"  {path}")
