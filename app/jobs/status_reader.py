"""Answers "who is asking, and how is this job?" for every request at once: one query per round, whatever the load.

A request that arrives while a query runs waits for the next one, so each is answered by a query that began after it
arrived: nothing is cached, a status or a revoked key is never stale. One thread owns one connection; under load a
round trip is shared by all requests that came in during the last. Browsers' sessions cost one query more a round.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from app.db import Database
from app.errors import NotReady
from app.jobs import repository
from app.jobs.views import JobView, Place
from app.keys.repository import KeyView
from app.sessions import repository as sessions

log = structlog.get_logger(__name__)
LONGEST_LOOK_S = 4
"""More than the database's own bounds on waiting."""
BATCH = 64
"""Most questions of one query. It joins keys with jobs, so its answer grows with the product of the two."""


class Seen(NamedTuple):
    key: KeyView | None
    job: JobView | None
    """None also where it belongs to another tenant than the key."""
    place: Place | None
    """Of a queued job."""


class Question(NamedTuple):
    key_hash: str
    """Empty where `session_hash` is given, which stands for it."""
    job_id: str
    session_hash: str
    answer: asyncio.Future[Seen]


class StatusReader:
    def __init__(self, database: Database) -> None:
        # Autocommit: each query sees the newest commit and costs one round trip, not three.
        self._engine = database.engine.execution_options(isolation_level="AUTOCOMMIT")
        self._connection: Connection | None = None
        self._questions: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="status-reader", daemon=True)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        self._questions.put(None)
        await asyncio.to_thread(self._thread.join)

    async def look(self, key_hash: str, job_id: str = "", session_hash: str = "") -> Seen:
        """The key of that hash, or of the session of that one, and the job if it is the key's tenant's.

        Raises NotReady without a database.
        """
        answer: asyncio.Future[Seen] = self._loop.create_future()
        self._questions.put(Question(key_hash, job_id, session_hash, answer))
        try:
            async with asyncio.timeout(LONGEST_LOOK_S):
                return await answer
        except TimeoutError:  # a database that is frozen does not even refuse
            raise _no_answer() from None

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            try:
                answers: list[Seen] | NotReady = self._answer(batch)
            except SQLAlchemyError as error:
                log.error("status_reader_failed", error=repr(error))
                batch += self._waiting()  # they have waited for this one, and would wait as long again
                answers = _no_answer()
            self._loop.call_soon_threadsafe(_deliver, batch, answers)
        self._disconnect()

    def _next_batch(self) -> list[Question] | None:
        """All waiting items, at least one; None when told to stop."""
        batch: list[Question] = []
        question = self._questions.get()
        while question is not None:
            batch.append(question)
            if len(batch) == BATCH:
                return batch
            try:
                question = self._questions.get_nowait()
            except queue.Empty:
                return batch
        return None

    def _waiting(self) -> list[Question]:
        """All items since the last batch."""
        waiting: list[Question] = []
        while not self._questions.empty():
            question = self._questions.get()
            if question is None:
                self._questions.put(None)
                break
            waiting.append(question)
        return waiting

    def _answer(self, batch: Sequence[Question]) -> list[Seen]:
        fresh = self._connection is None
        try:
            return self._query(batch)
        except SQLAlchemyError as error:
            self._disconnect()
            if fresh or not (isinstance(error, DBAPIError) and error.connection_invalidated):
                raise
            return self._query(batch)  # the connection was old: the database may have restarted

    def _query(self, batch: Sequence[Question]) -> list[Seen]:
        if self._connection is None:
            self._connection = self._engine.connect()
        connection = self._connection
        if hashes := {question.session_hash for question in batch} - {""}:
            found = sessions.key_hashes(connection, _padded(hashes))
            batch = [q._replace(key_hash=found.get(q.session_hash, "")) if q.session_hash else q for q in batch]
        keys, jobs = repository.keys_and_jobs(
            connection, _padded({q.key_hash for q in batch}), _padded({q.job_id for q in batch})
        )
        places = repository.places(connection, jobs.values())
        connection.rollback()  # on SQLite this ends the snapshot; on PostgreSQL there is nothing to end
        return [_seen(question, keys, jobs, places) for question in batch]

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _no_answer() -> NotReady:
    return NotReady("The database does not answer; try again shortly.", retryable=True, headers={"Retry-After": "5"})


def _seen(
    question: Question,
    keys: Mapping[str, KeyView],
    jobs: Mapping[tuple[str, str], JobView],
    places: Mapping[str, Place],
) -> Seen:
    key = keys.get(question.key_hash)
    job = jobs.get((key.tenant_id, question.job_id)) if key else None
    return Seen(key, job, places.get(question.job_id) if job else None)


def _deliver(batch: Sequence[Question], answers: Sequence[Seen] | NotReady) -> None:
    for i, question in enumerate(batch):
        if question.answer.done():  # the client has gone
            continue
        if isinstance(answers, NotReady):
            question.answer.set_exception(answers)
        else:
            question.answer.set_result(answers[i])


def _padded(values: set[str]) -> list[str]:
    """The values, the last repeated up to a power of two: few statement sizes, so each is prepared once."""
    padded = list(values)
    return padded + padded[-1:] * ((1 << (len(padded) - 1).bit_length()) - len(padded))
