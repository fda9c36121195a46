"""Brings results to where they are to be published. Run by any number of processes; the reconciler runs one.

A publication is taken with a lease, which is renewed while it is worked on outside of any transaction. Whoever dies
leaves it to the next, who finds at the place what is there already. Whoever was stopped past its lease is fenced: it
changes nothing at the place any more, nor in the row. Tenants take turns, and so do the publications of one job: two
to one place would each find nothing there, and each make it. A publication has a state of its own: whatever becomes of
it, its job has succeeded.
"""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from typing import Any, NamedTuple

import structlog
from sqlalchemy import Select, func, literal_column, select
from sqlalchemy.orm import Session, aliased

from app.artifacts.signed import signature
from app.db import Database, clock
from app.jobs import repository
from app.jobs.models import Job, JobLabel
from app.keys.repository import tenant_name
from app.metrics.observations import note
from app.publications import service
from app.publications.contract import Published, PublishFailure, Result, ResultFile, Stopped
from app.publications.credentials import Credentials, secrets_of
from app.publications.models import DUE, Publication
from app.publications.pending import TRIES
from app.publications.registry import publishers
from app.publications.request import read
from app.publications.stored import opened
from app.signing.keys import KeyRing
from app.storage import ArtifactStore
from workers.engine.files.manifest import MANIFEST

log = structlog.get_logger(__name__)

WAITS_S = (10, 60, 300, 900, 3600, 3600, 14_400)
"""After each try that may be tried again; then it has failed."""
AT_ONCE = 2
LEASE_MS = 60_000
BEAT_S = 10.0
LOOK_EVERY_S = 1.0
MESSAGE_LENGTH, TRACEBACK_LENGTH = 500, 10_000
_RUNNING = aliased(Publication)


class Stored(NamedTuple):
    """A file of the result, where it lies."""

    path: str
    size: int
    sha256: str
    key: str
    content: bytes | None = None
    """Of the signature, which lies nowhere."""


@dataclass
class Taken:
    """A publication at work."""

    id: str
    job_id: str
    tries: int
    fence: int
    params: dict[str, Any]
    tenant: str
    files: Sequence[Stored]
    labels: dict[str, str]
    report: dict[str, Any]
    done: int = 0
    """Bytes."""
    since: float = field(default_factory=time.monotonic)

    @property
    def total(self) -> int:
        return sum(file.size for file in self.files)


class Deliverer:
    def __init__(
        self, database: Database, store: ArtifactStore, credentials: Credentials, keys: KeyRing, beat_s: float = BEAT_S
    ) -> None:
        self._database, self._store, self._credentials, self._keys = database, store, credentials, keys
        self._beat_s = beat_s
        self._stop = threading.Event()

    def step(self) -> bool:
        """Work on the one that is next; False where none is due."""
        with self._database.read() as session:  # so that nothing is locked each second for nothing
            if not _candidates(session):
                return False
        taken = self._database.transact(self._take)
        if taken is not None:
            with structlog.contextvars.bound_contextvars(job_id=taken.job_id, publication=taken.id):
                self._work(taken)
        return taken is not None

    def run(self, stop: threading.Event) -> None:
        """Until told to stop; what is at work then is given back at once."""
        self._stop = stop
        while not stop.is_set():
            try:
                if self.step():
                    continue
            except Exception as error:  # the database is away; the next round tries again
                log.warning("publications_failed", error=repr(error))
            stop.wait(LOOK_EVERY_S)

    def _take(self, session: Session) -> Taken | None:
        for publication_id, job_id in _candidates(session):
            job = session.scalar(select(Job).where(Job.id == job_id).with_for_update(skip_locked=True))
            if job is None:  # somebody changes it just now
                continue
            found = session.get(Publication, publication_id, with_for_update=True)
            now = clock(session)
            if found is None or found.state not in ("pending", "running") or found.due_at > now:
                continue
            if session.scalar(select(_at_work(now).where(_RUNNING.job_id == job_id).exists())):
                continue
            if found.state == "running" and found.tries > len(WAITS_S):
                lost = PublishFailure(
                    "publisher_lost",
                    f"the process that publishes was lost {found.tries} times",
                    "The operator looks at the reconciler's memory and log; then try it again.",
                )
                _end(session, job, found, lost)
                continue
            found.state, found.tries, found.due_at, found.error = "running", found.tries + 1, now + LEASE_MS, None
            found.fence += 1
            service.show(session, job)
            return self._taken(session, job, found)
        return None

    def _taken(self, session: Session, job: Job, found: Publication) -> Taken:
        labels = session.execute(select(JobLabel.key, JobLabel.value).where(JobLabel.job_id == job.id))
        listed = repository.artifacts(session, job.tenant_id, job.id)
        files = [Stored(each.path, each.bytes, each.sha256, each.key) for each in listed]
        if signed := signature(session, self._keys, job.tenant_id, job.id, job.finished_at):
            files.append(Stored(signed.file.path, signed.file.bytes, signed.file.sha256, "", signed.content))
        return Taken(
            found.id,
            job.id,
            found.tries,
            found.fence,
            found.params,
            tenant_name(session, job.tenant_id),
            files,
            {row.key: row.value for row in labels},
            repository.report(session, job.tenant_id, job.id) or {},
        )

    def _work(self, taken: Taken) -> None:
        over, gone = threading.Event(), threading.Event()
        beats = threading.Thread(target=self._beat, args=[taken, over, gone], daemon=True)
        beats.start()
        outcome: Published | PublishFailure | None = None
        secrets: dict[str, str] = {}
        try:
            params = read(taken.params)
            target = self._credentials.target(params, taken.tenant)
            secrets |= secrets_of(target)
            outcome = publishers()[params.to].publish(target, params, self._result(taken, gone), secrets)
        except Stopped:
            pass
        except PublishFailure as failure:
            outcome = failure
        except Exception as error:
            if not gone.is_set():  # libraries wrap Stopped in errors of their own
                outcome = _crash(error, secrets.values())
        finally:
            over.set()
            beats.join()
        if isinstance(outcome, PublishFailure):
            outcome.message = without(outcome.message, secrets.values())
            outcome.hint = without(outcome.hint, secrets.values())
        if outcome is None or not self._database.transact(partial(_record, taken=taken, outcome=outcome)):
            log.info("publication_let_go")  # deleted, given back, or taken up by another
        elif isinstance(outcome, PublishFailure):
            log.warning("publication_failed", code=outcome.code, error=outcome.message)
        else:
            log.info("published", changed=outcome.changed)

    def _result(self, taken: Taken, gone: threading.Event) -> Result:
        def check() -> None:
            if gone.is_set():
                raise Stopped

        def done(count: int) -> None:
            check()
            taken.done += count

        def confirm() -> None:
            check()
            if not self._database.transact(partial(_renew, taken=taken, shown=taken.done)):
                gone.set()
                raise Stopped

        files = [
            ResultFile(
                each.path,
                each.size,
                each.sha256,
                partial(opened, self._store, each.key, each.path, each.size, check)
                if each.content is None
                else partial(BytesIO, each.content),
            )
            for each in taken.files
        ]
        manifest = next((each.sha256 for each in taken.files if each.path == MANIFEST), None)
        if manifest is None:
            raise PublishFailure(
                "artifact_lost", "the result has no manifest any more", "Submit the job again, and publish that one."
            )
        return Result(taken.job_id, taken.tenant, files, manifest, taken.labels, taken.report, done, confirm)

    def _beat(self, taken: Taken, over: threading.Event, gone: threading.Event) -> None:
        """Renew the lease until the work is over, and show how far it is; give it back where this process is to end."""
        shown, renewed = -1, time.monotonic()
        while not over.wait(min(self._beat_s, LOOK_EVERY_S)):
            stopping = self._stop.is_set()
            if not stopping and time.monotonic() - renewed < self._beat_s:
                continue
            change = partial(_give_back, taken=taken) if stopping else partial(_renew, taken=taken, shown=shown)
            try:
                kept = self._database.transact(change) and not stopping
            except Exception as error:  # the lease outlives a short outage
                log.warning("publication_beat_failed", error=repr(error))
                continue
            shown, renewed = taken.done, time.monotonic()
            if not kept:
                gone.set()
                return


def without(text: str, secrets: Iterable[str], *, length: int = MESSAGE_LENGTH) -> str:
    """The beginning of the text without the secrets, and without what URLs carry behind a `?` or before an `@`."""
    for secret in sorted((each for each in secrets if len(each) > 3), key=len, reverse=True):
        text = text.replace(secret, "***")
    words = []
    for word in text.split(" "):
        head, mark, _ = word.partition("?")
        word = f"{head}?…" if mark and "://" in head else word
        scheme, separator, rest = word.partition("://")
        words.append(
            f"{scheme}://***@{rest.partition('@')[2]}" if separator and "@" in rest.partition("/")[0] else word
        )
    return " ".join(words)[:length]


def _candidates(session: Session) -> list[tuple[str, str]]:
    """(publication, job) of the next few: first of the tenant that has the fewest at work, then the oldest."""
    now = clock(session)
    same_tenant = _at_work(now).where(_RUNNING.tenant_id == Publication.tenant_id).correlate(Publication)
    same_job = _at_work(now).where(_RUNNING.job_id == Publication.job_id).correlate(Publication)
    age = (Publication.due_at, Publication.id)
    turn = func.row_number().over(partition_by=Publication.tenant_id, order_by=age)
    due = (
        select(Publication.id, Publication.job_id)
        .where(literal_column(f"publications.{DUE}"), Publication.due_at <= now, ~same_job.exists())
        .order_by(same_tenant.with_only_columns(func.count()).scalar_subquery() + turn, *age)
        .limit(8)
    )
    return [(row.id, row.job_id) for row in session.execute(due)]


def _at_work(now: int) -> Select[str]:
    """Ids of the publications under a lease."""
    return select(_RUNNING.id).where(_RUNNING.state == "running", _RUNNING.due_at > now)


def _renew(session: Session, taken: Taken, shown: int) -> bool:
    """Whether it is still ours."""
    job, found = _locked(session, taken)
    if job is None or found is None:
        return False
    found.due_at = clock(session) + LEASE_MS
    if taken.done != shown:
        found.progress = {"done": min(taken.done, taken.total), "total": taken.total}
        service.show(session, job)
    return True


def _give_back(session: Session, taken: Taken) -> bool:
    """For another process to go on; it was no try."""
    job, found = _locked(session, taken)
    if job is None or found is None:
        return False
    found.state, found.tries, found.due_at = "pending", found.tries - 1, clock(session)
    service.show(session, job)
    return True


def _record(session: Session, taken: Taken, outcome: Published | PublishFailure) -> bool:
    """Whether it was still ours."""
    job, found = _locked(session, taken)
    if job is None or found is None:
        return False
    lasted_ms = int((time.monotonic() - taken.since) * 1000)
    if isinstance(outcome, PublishFailure):
        _end(session, job, found, outcome, lasted_ms)
        return True
    note(session, TRIES, ("published",), lasted_ms)
    found.state, found.done_at, found.error = "published", clock(session), None
    found.result = {"location": outcome.location, "revision": outcome.revision, "changed": outcome.changed}
    found.progress = {"done": taken.total, "total": taken.total}
    service.show(session, job, found)
    return True


def _end(session: Session, job: Job, found: Publication, failure: PublishFailure, lasted_ms: int = 0) -> None:
    """Of a try: it waits for the next, or has failed."""
    now = clock(session)
    found.error = {
        "code": failure.code,
        "message": failure.message,
        "hint": failure.hint,
        "retryable": failure.retryable,
    }
    again = failure.retryable and found.tries <= len(WAITS_S)
    note(session, TRIES, ("failed" if again else "given_up",), lasted_ms)
    if again:
        wait_s = WAITS_S[found.tries - 1] * random.uniform(1, 1.1)
        found.state, found.due_at = "pending", now + int(wait_s * 1000)
        service.show(session, job)
    else:
        found.state, found.done_at = "failed", now
        service.show(session, job, found)


def _locked(session: Session, taken: Taken) -> tuple[Job | None, Publication | None]:
    """Job and publication; None where they are deleted, or taken up by another."""
    job = session.scalar(select(Job).where(Job.id == taken.job_id).with_for_update())
    found = session.get(Publication, taken.id, with_for_update=True)
    # The tries as well: a process of the version before the fence raises them alone.
    mine = found is not None and (found.state, found.fence, found.tries) == ("running", taken.fence, taken.tries)
    return job, found if mine else None


def _crash(error: Exception, secrets: Iterable[str]) -> PublishFailure:
    """An error that the publisher has not foreseen, such as a bug of a plug-in's."""
    text = without(traceback.format_exc(), secrets, length=TRACEBACK_LENGTH)
    log.error("publisher_crashed", traceback=text)
    bug = isinstance(error, TypeError | AssertionError | LookupError | AttributeError)
    return PublishFailure(
        "publisher_crashed", f"{type(error).__name__}: {error}", "The reconciler's log has more.", retryable=not bug
    )
