"""Database, files and key of the embedded service, made ready for it."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.orm import Session

from app import deployment, migrate
from app.cli.admin import answering
from app.cli.exits import Usage
from app.cli.options import local_key_path
from app.db import Database
from app.keys import service as keys
from app.keys.scopes import SCOPES
from app.keys.tokens import hash_token
from app.settings import Settings
from app.storage import ArtifactStore


def prepare(settings: Settings) -> None:
    """Bring the schema up to date. Refuse in one sentence what each of the processes would refuse, before any is
    started."""
    settings.home.mkdir(parents=True, exist_ok=True)
    with answering(settings):
        migrate.upgrade(settings.database_url)
        database = Database(settings.database_url)
        try:
            deployment_id = deployment.check(database, ArtifactStore(settings.artifacts_url))
            deployment.check_work_dir(settings.work_dir, deployment_id)
        except deployment.Refused as error:
            raise Usage(str(error)) from None
        finally:
            database.dispose()


def local_key(settings: Settings) -> str:
    """The text of the key in `home/local-key`; a new one where there is none or the database does not have it."""
    path = local_key_path(settings)
    database = Database(settings.database_url)
    try:
        return database.transact(lambda session: _kept_or_new_key(session, settings, path))
    finally:
        database.dispose()


def _kept_or_new_key(session: Session, settings: Settings, path: Path) -> str:
    if path.exists():
        text = path.read_text().strip()
        known = hash_token(text, settings.secret())
        if any(key.hash == known and key.revoked_at is None for key, _ in keys.list_keys(session)):
            return text
    _, text = keys.create_key(
        session, secret=settings.secret(), tenant="local", name="local", scopes=list(SCOPES), expires_days=None
    )
    _write_private(path, text)
    return text


def _write_private(path: Path, text: str) -> None:
    """Replace the file; it is never readable by others, not even while it is written."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.touch(mode=0o600, exist_ok=False)
    fresh.write_text(text + "\n")
    fresh.replace(path)
