"""Which database, artifact store and work folder belong together: they carry one id, made when they first meet.

The database keeps the id in its one row of `deployment`, the store in the object `espalier-deployment`, a work folder
in a file of that name. The row is written first, then the store is marked, then the row notes that it was: whoever
dies in between, the next process goes on from there, and several may start at once. A store that is not this
database's is refused, because its files would be taken for nobody's, or this database's results would be missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import signal
import sys
import threading
from pathlib import Path

import structlog
from sqlalchemy import BigInteger, String, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.db import Base, Database, clock, now_ms
from app.files import write_once
from app.ids import new_id
from app.jobs import upkeep_repository
from app.storage import MARKER, AlreadyStored, ArtifactStore, StorageError
from app.text import legible

log = structlog.get_logger(__name__)

RETRY_S = 5.0
START_WITHIN_S = 5.0


class Deployment(Base):
    __tablename__ = "deployment"

    only: Mapped[int] = mapped_column(primary_key=True, default=1)
    id: Mapped[str] = mapped_column(String(40))
    created_at: Mapped[int] = mapped_column(BigInteger)
    store_marked_at: Mapped[int | None] = mapped_column(BigInteger)
    """When a store was found or made to carry the id; from then on one without it is refused."""


class Refused(Exception):
    """The store or the work folder belongs to another deployment; the message names it and the remedy."""


def check(database: Database, store: ArtifactStore) -> str:
    """The deployment's id, given to database and store if both are fresh. Raises Refused, or what the two raise."""
    _check_restored(store)
    mine, marked = _of_database(database)
    found = store.deployment()
    if found is None:
        with database.read() as session:
            has_results = upkeep_repository.any_artifact(session)
        if marked or has_results:
            raise Refused(
                f"The artifact store {store.url} is not the one this database has its results in: it carries no "
                "deployment id. Correct ESPALIER_ARTIFACTS_URL or ESPALIER_DATABASE_URL; if this is the store after "
                "all (moved without its marker, or from before deployments had ids), run `espalier adopt-store`."
            )
        if store.is_empty():
            with contextlib.suppress(AlreadyStored):  # another process of ours was faster, or another deployment
                store.mark(mine)
        # Not empty: another process may have marked it and begun to work since we looked.
        found = store.deployment()
    if found is None:
        raise Refused(
            f"The artifact store {store.url} has files in it and carries no deployment id, and this database knows "
            "no result. Give this deployment a store or prefix of its own (ESPALIER_ARTIFACTS_URL), name the database "
            "that knows these files (ESPALIER_DATABASE_URL), or run `espalier adopt-store` to use the store with what "
            "is in it."
        )
    if found != mine:
        raise Refused(
            f"The artifact store {store.url} {_belongs_to(found)}, this database to {mine}. Correct "
            "ESPALIER_ARTIFACTS_URL or ESPALIER_DATABASE_URL, or give this deployment a store or prefix of its own. If "
            f"the other one is gone for good, `espalier adopt-store --from {shlex.quote(found)}` takes the store over; "
            "no file is deleted by that."
        )
    if not marked:
        _note_marked(database)
    return mine


def check_or_exit(database: Database, store: ArtifactStore, work_dir: Path, stop: threading.Event) -> None:
    """First step of a worker or reconciler: `check`, as soon as database and store answer, and the work folder.

    Returns when all belong together or `stop` is set; ends the process with exit code 2 where they do not.
    """
    try:
        while not stop.is_set():
            try:
                return check_work_dir(work_dir, check(database, store))
            except (SQLAlchemyError, StorageError, OSError) as error:
                log.warning("waiting_for_database_and_store", error=repr(error))
            stop.wait(RETRY_S)
    except Refused as error:
        log.error("refused", detail=str(error))
        sys.exit(2)


async def check_at_start(database: Database, store: ArtifactStore) -> asyncio.Task[str]:
    """The API's `check`: raises Refused, unless database or store do not answer in time.

    Then the API serves what it can, the check goes on in the task returned, and a refusal ends the process.
    """
    task = asyncio.create_task(_checked(database, store))
    await asyncio.wait({task}, timeout=START_WITHIN_S)
    if task.done():
        task.result()
    else:
        task.add_done_callback(_end_if_refused)
    return task


async def _checked(database: Database, store: ArtifactStore) -> str:
    while True:
        try:
            return await asyncio.to_thread(check, database, store)
        except (SQLAlchemyError, StorageError, OSError) as error:
            log.warning("waiting_for_database_and_store", error=repr(error))
        await asyncio.sleep(RETRY_S)


def _end_if_refused(task: asyncio.Task[str]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("refused", detail=str(error))
        signal.raise_signal(signal.SIGTERM)


def check_work_dir(work_dir: Path, deployment_id: str) -> None:
    """Give the folder the id if it has none. Raises Refused if it has another."""
    marker = work_dir / MARKER
    write_once(marker, deployment_id)
    found = legible(marker.read_bytes())
    if found != deployment_id:
        raise Refused(
            f"The work folder {work_dir} {_belongs_to(found)}, this database to {deployment_id}: set "
            f"ESPALIER_WORK_DIR to a folder of its own. If no other deployment uses this one, delete {marker}."
        )


def adopt(database: Database, store: ArtifactStore, work_dir: Path, *, taken_from: str | None) -> str:
    """Make the store this database's, with all that is in it, and return the id. Deletes nothing.

    `taken_from` is the id the store carries now, where it is another's. Raises Refused where that is not so.
    """
    _check_restored(store)
    mine, _ = _of_database(database)
    found = store.deployment()
    if found is not None and found != mine and found != taken_from:
        raise Refused(
            f"The artifact store {store.url} {_belongs_to(found)}. Is that one gone for good, and this the "
            f"store you mean? Then run `espalier adopt-store --from {shlex.quote(found)}`."
        )
    if found != mine:
        store.mark(mine, replace=True)
    marker = work_dir / MARKER
    if taken_from is not None and marker.exists() and legible(marker.read_bytes()) == taken_from:
        marker.unlink()
    _note_marked(database)
    return mine


def _check_restored(store: ArtifactStore) -> None:
    """Nothing is given or served before a restore has ended: neither its files nor its rows may be all there."""
    if store.restoring() is not None:
        raise Refused(
            f"A restore into the artifact store {store.url} is at work, or was cut short. Let it end, or run the same "
            "`espalier restore` again: it goes on with what is missing."
        )


def _belongs_to(found: str) -> str:
    if found.isidentifier():
        return f"belongs to deployment {found}"
    return f"belongs to nobody who can be named ({MARKER} holds {shlex.quote(found)}, no deployment's id)"


def _of_database(database: Database) -> tuple[str, bool]:
    """(the database's id, made if it has none yet; whether the store carries it)."""

    def make(session: Session) -> None:
        session.add(Deployment(id=new_id("dep"), created_at=clock(session)))

    def known() -> tuple[str, bool] | None:
        with database.read() as session:
            row = session.execute(select(Deployment.id, Deployment.store_marked_at)).one_or_none()
        return None if row is None else (row.id, row.store_marked_at is not None)

    found = known()
    if found is None:
        with contextlib.suppress(IntegrityError):  # another process was faster
            database.transact(make)
        found = known()
    assert found is not None
    return found


def _note_marked(database: Database) -> None:
    database.transact(
        lambda session: session.execute(
            update(Deployment).where(Deployment.store_marked_at.is_(None)).values(store_marked_at=now_ms())
        )
    )
