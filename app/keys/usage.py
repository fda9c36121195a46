"""Notes when a key was last used: off the request's path, and at most once a minute."""

from __future__ import annotations

import asyncio

import structlog
from sqlalchemy.exc import SQLAlchemyError

from app.db import Database
from app.keys import service

log = structlog.get_logger(__name__)


class KeyUsage:
    """Used on the event loop only."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._being_noted: dict[str, asyncio.Task[None]] = {}

    def note(self, key_id: str) -> None:
        """Begin to write it down, unless that is being done."""
        if key_id not in self._being_noted:
            task = asyncio.create_task(asyncio.to_thread(self._write, key_id))
            self._being_noted[key_id] = task
            task.add_done_callback(lambda _: self._being_noted.pop(key_id))

    async def finish(self) -> None:
        """Wait for what is being written."""
        await asyncio.gather(*self._being_noted.values())

    def _write(self, key_id: str) -> None:
        try:
            self._database.transact(lambda session: service.touch(session, key_id))
        except SQLAlchemyError as error:  # a date for people to look at: not worth anybody's request
            log.warning("key_usage_not_noted", key_id=key_id, error=repr(error))
