"""`espalier backup` and `espalier restore`: database and artifact store together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli import output
from app.cli.exits import CliError, Usage
from app.cli.extras import needs
from app.cli.options import AsJson, load_settings

if TYPE_CHECKING:
    from app.backup.contents import Contents
    from app.settings import Settings

Place = Annotated[str, typer.Argument(help="A folder, or s3://…, gs://…, az://….")]
Source = Annotated[str, typer.Argument(metavar="FROM", help="A folder or URL that `espalier backup` wrote to.")]
APART = "not in it: the secret key, and the keys that sign manifests; keep them apart"


@needs("api")
def backup(to: Place, as_json: AsJson = False) -> None:
    """Back up the database and the artifact store together, while the service runs.

    The rows are of one moment; the files of all jobs they speak of are there. What the target has must be nothing.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from app.backup.backup import back_up
    from app.backup.contents import BadBackup, place
    from app.db import Database
    from app.storage import ArtifactStore, StorageError

    settings = load_settings()
    database = Database(settings.database_url)
    try:
        contents = back_up(
            database, ArtifactStore(settings.artifacts_url), place(to), signing_keys=_signing_keys(settings)
        )
    except BadBackup as error:
        raise Usage(str(error)) from None
    except (SQLAlchemyError, StorageError, OSError) as error:
        raise CliError(
            f"the backup is not complete, and what is at {to} is none: {error}\nDelete that, and give the next backup "
            "a place of its own with room enough"
        ) from error
    finally:
        database.dispose()
    _print(contents, f"backed up to {to}", as_json=as_json)
    for kind, keys in (("missing from the store", contents.missing), ("damaged in the store", contents.damaged)):
        for key in keys:
            output.stderr.print(f"{kind}: {key}")


@needs("api")
def restore(source: Source, as_json: AsJson = False) -> None:
    """Restore a backup into an empty database, SQLite or PostgreSQL, and an empty artifact store.

    Those that the settings name. Every file is checked against the digest it was backed up with. No process starts on
    a store before the restore has ended; one that was cut goes on when it is run again.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from app.backup.contents import BadBackup, place
    from app.backup.restore import restore as restore_from
    from app.db import Database
    from app.storage import ArtifactStore, StorageError

    settings = load_settings()
    if settings.embedded:
        Path(settings.database_url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    database = Database(settings.database_url)
    try:
        contents = restore_from(place(source), database, settings.database_url, ArtifactStore(settings.artifacts_url))
    except BadBackup as error:
        raise Usage(str(error)) from None
    except (SQLAlchemyError, StorageError, OSError) as error:
        raise CliError(
            f"the restore has not ended: {error}\nMend that, and run the same command again: it goes on with what is "
            "missing, and until it has ended no process starts on the store"
        ) from error
    finally:
        database.dispose()
    lost = sorted(set(contents.signing_keys) - set(_signing_keys(settings)))
    _print(contents, f"restored from {source}", as_json=as_json, signing_keys_missing=lost)
    if lost and not as_json:
        output.stderr.print(
            f"{settings.signing_keys} lacks keys that had signed its results: {', '.join(lost)}. Bring the file back "
            "from where it is kept (ESPALIER_SIGNING_KEYS) before you start the service: without them what was "
            "downloaded before is not verified any more"
        )


def _signing_keys(settings: Settings) -> list[str]:
    """Ids of the keys that the service publishes; a file that cannot be read holds up neither of the two."""
    from app.signing.keys import KeyRing
    from app.watched_file import Unreadable

    try:
        return [key.kid for key in KeyRing(settings.signing_keys, make=False).all() if key.revoked_at is None]
    except Unreadable as error:
        output.stderr.print(output.marked("[yellow]warning[/] {}", error))
        return []


def _print(contents: Contents, done: str, *, as_json: bool, **more: object) -> None:
    if as_json:
        output.print_json({**contents.model_dump(), **more})
        return
    rows = sum(table.lines for table in contents.tables.values())
    output.stdout.print(
        f"{done}: {rows:,} rows of {len(contents.tables)} tables, {contents.files.lines:,} files of "
        f"{contents.stored_bytes:,} bytes; {APART}"
    )
