"""`espalier db downgrade`: back to an earlier schema, for an earlier version."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli import output
from app.cli.admin import answering
from app.cli.exits import CliError, Usage
from app.cli.extras import needs
from app.cli.options import AsJson, load_settings


@needs("api")
def db_downgrade(
    revision: Annotated[str | None, typer.Argument(help="Go back to this revision. Default: one step.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; else what would be lost is shown, and no more.")] = False,
    as_json: AsJson = False,
) -> None:
    """Take the database's schema back, for an earlier version of espalier.

    Stop the API, workers and reconciler first: they refuse another schema than their own. Tables and columns that the
    earlier schema does not have are lost. Files that jobs share are copied, where the earlier version knows of none.
    """
    from app import migrate
    from app.db import Database
    from app.jobs import unsharing
    from app.storage import ArtifactStore, StorageError

    settings = load_settings()
    url, shared = settings.database_url, 0
    with answering(settings):
        database = Database(url)
        try:
            now = migrate.current(database)
            if now is None:
                raise Usage("the database has no schema yet: there is nothing to go back from")
            if not migrate.is_known(now):
                raise Usage(f"the database is at {now}, which this version does not know: use the version that made it")
            to = revision or migrate.before(now)
            if to is None:
                raise Usage(f"{now} is the first revision")
            if not migrate.is_known(to) or not migrate.is_before(to, now):
                raise Usage(f"{to} is no revision before {now}")
            losses = migrate.lost_by(database, to)
            if migrate.is_before(to, unsharing.SINCE) and not migrate.is_before(now, unsharing.SINCE):
                if yes:
                    shared = unsharing.unshare(database, ArtifactStore(settings.artifacts_url))
                else:
                    with database.read() as session:
                        shared = len(unsharing.elsewhere(session))
        except (StorageError, OSError) as error:
            raise CliError(f"nothing was changed but some files copied, which jobs share: {error}") from error
        finally:
            database.dispose()
        if yes:
            migrate.downgrade(url, to)
    if as_json:
        lost = [{"table": loss.table, "column": loss.column, "rows": loss.rows} for loss in losses]
        output.print_json({"from": now, "to": to, "done": yes, "lost": lost, "files_copied": shared})
    else:
        output.stdout.print(f"{'went' if yes else 'would go'} back from {now} to {to}")
        for loss in losses:
            what = f"table {loss.table}" if loss.column is None else f"column {loss.column} of table {loss.table}"
            output.stdout.print(f"  {'lost' if yes else 'loses'} {what}: {loss.rows:,} rows")
        if shared:
            output.stdout.print(f"  {'copied' if yes else 'copies'} {shared:,} files that jobs share")
    if not yes:
        raise Usage("nothing was changed: back the database up (`espalier backup`), then add --yes")
