"""The SELECTs of requests: each is scoped to a tenant here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    bindparam,
    exists,
    func,
    literal_column,
    or_,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.orm import Session

from app.db import now_ms, table
from app.jobs.models import Artifact, Attempt, Event, IdempotencyKey, Job, JobLabel, RemovedArtifact, ReportRecord
from app.jobs.needs import Needs, live, waiting_for
from app.jobs.views import COLUMNS, JobView, Place
from app.keys.models import ApiKey
from app.keys.repository import KEY_COLUMNS, KeyView

Child = TypeVar("Child", Artifact, Attempt, Event, RemovedArtifact, ReportRecord)

QUEUE_DEPTH = 1000
"""Places in the queue are counted up to this."""
_job = table(Job).c
_VIEW = select(*COLUMNS)

By = Literal["created_at", "updated_at", "priority", "model"]
TOTAL_MOST = 10_000
"""Jobs of a list are counted up to this."""
_COLUMNS_OF: dict[By, tuple[str, ...]] = {
    "created_at": ("created_at", "id"),
    "updated_at": ("updated_at", "id"),
    "priority": ("priority", "created_at", "id"),
    "model": ("model_id", "created_at", "id"),
}
"""Each with an index of its own behind the tenant."""


@dataclass(frozen=True)
class Order:
    """The order of a list of jobs."""

    by: By = "created_at"
    descending: bool = True

    @property
    def columns(self) -> tuple[ColumnElement[Any], ...]:
        return tuple(column.desc() if self.descending else column.asc() for column in self._key)

    def behind(self, position: tuple[int | str, ...]) -> ColumnElement[bool]:
        """The condition of jobs that come after that position."""
        key = tuple_(*self._key)
        return key < position if self.descending else key > position

    def position(self, job: Listed) -> tuple[int | str, ...]:
        """The job's values of the columns."""
        return tuple(getattr(job, name) for name in _COLUMNS_OF[self.by])

    @property
    def _key(self) -> list[ColumnElement[Any]]:
        return [_job[name] for name in _COLUMNS_OF[self.by]]


NEWEST_FIRST = Order()


@dataclass(frozen=True)
class Filters:
    """Filters of a list of jobs; empty ones do not filter."""

    statuses: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    model_id: str | None = None
    verdict: str | None = None
    method: str | None = None
    """Of any stage."""
    search: str | None = None
    """A part of the id, the model, a method's name or a label, in any case."""
    created_after: int | None = None
    """Milliseconds, exclusive."""
    created_before: int | None = None


def view(session: Session, tenant_id: str, job_id: str) -> JobView | None:
    session.flush()  # only a SELECT of classes would do it by itself
    row = session.execute(_VIEW.where(_job.id == job_id, _job.tenant_id == tenant_id)).one_or_none()
    return None if row is None else JobView(*row)


def lock_owned(session: Session, tenant_id: str, job_id: str) -> Job | None:
    """The tenant's job, its row locked until the transaction ends."""
    return session.execute(
        select(Job)
        .where(Job.id == job_id, Job.tenant_id == tenant_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).scalar_one_or_none()


class Listed(Protocol):
    """Values that change whenever a job does."""

    @property
    def id(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def updated_at(self) -> int: ...
    @property
    def status(self) -> str: ...
    @property
    def created_at(self) -> int: ...
    @property
    def queue(self) -> str: ...
    @property
    def devices(self) -> int: ...
    @property
    def methods(self) -> str: ...
    @property
    def peak_memory_bytes(self) -> int | None: ...
    @property
    def priority(self) -> int: ...
    @property
    def model_id(self) -> str: ...
    @property
    def tenant_id(self) -> str: ...


class ListedJob(NamedTuple):
    """One row of _LISTED, in its order."""

    id: str
    version: int
    updated_at: int
    status: str
    created_at: int
    queue: str
    devices: int
    methods: str
    peak_memory_bytes: int | None
    priority: int
    model_id: str
    tenant_id: str


_LISTED = select(*(_job[name] for name in ListedJob._fields))


class Page(NamedTuple):
    """Which of the tenant's jobs that pass the filters: so many behind a position in an order."""

    filters: Filters
    limit: int
    behind: tuple[int | str, ...] | None = None
    order: Order = NEWEST_FIRST


def page(connection: Connection, tenant_id: str, asked: Page) -> list[ListedJob]:
    """The jobs of the page."""
    rows = connection.execute(_LISTED.where(*_on(tenant_id, asked)).order_by(*asked.order.columns).limit(asked.limit))
    return [ListedJob(*row) for row in rows]


def whole_page(connection: Connection, tenant_id: str, asked: Page) -> list[JobView]:
    """The same with all that is shown of each."""
    rows = connection.execute(_VIEW.where(*_on(tenant_id, asked)).order_by(*asked.order.columns).limit(asked.limit))
    return [JobView(*row) for row in rows]


def total(connection: Connection, tenant_id: str, filters: Filters) -> int:
    """How many of the tenant's jobs pass the filters, counted up to TOTAL_MOST."""
    conditions = _passing(tenant_id, filters)
    if filters.statuses:
        conditions.append(_job.status.in_(filters.statuses))
    found = select(_job.id).where(*conditions).limit(TOTAL_MOST).subquery()
    return connection.execute(select(func.count()).select_from(found)).scalar_one()


def _holds(text: str) -> ColumnElement[bool]:
    """Whether a job has the text somewhere. Reads jobs one after another, in the order of the list."""
    label = table(JobLabel).c
    in_label = or_(label.key.icontains(text, autoescape=True), label.value.icontains(text, autoescape=True))
    in_job = [column.icontains(text, autoescape=True) for column in (_job.id, _job.model_id, _job.methods)]
    return or_(*in_job, exists().where(label.job_id == _job.id, in_label))


def _on(tenant_id: str, asked: Page) -> list[ColumnElement[bool]]:
    conditions = _passing(tenant_id, asked.filters)
    if asked.behind is not None:
        conditions.append(asked.order.behind(asked.behind))
    statuses = asked.filters.statuses
    if len(statuses) == 1:
        conditions.append(_job.status == statuses[0])
    elif statuses:
        # An index gives one status in order; of several, each is read up to the limit, then merged.
        of_each = [
            select(_job.id)
            .where(*conditions, _job.status == status)
            .order_by(*asked.order.columns)
            .limit(asked.limit)
            .subquery()
            for status in statuses
        ]
        conditions = [_job.id.in_(union_all(*(select(found.c.id) for found in of_each)))]
    return conditions


def _passing(tenant_id: str, filters: Filters) -> list[ColumnElement[bool]]:
    """The filters but for the statuses."""
    conditions: list[ColumnElement[bool]] = [_job.tenant_id == tenant_id]
    if filters.model_id is not None:
        conditions.append(_job.model_id == filters.model_id)
    if filters.verdict is not None:
        conditions.append(_job.verdict == filters.verdict)
    if filters.method is not None:
        conditions.append(_job.methods.contains(f" {filters.method} ", autoescape=True))
    if filters.search is not None:
        conditions.append(_holds(filters.search))
    if filters.created_after is not None:
        conditions.append(_job.created_at > filters.created_after)
    if filters.created_before is not None:
        conditions.append(_job.created_at < filters.created_before)
    for key, value in filters.labels:
        conditions.append(_job.id.in_(select(JobLabel.job_id).where(JobLabel.key == key, JobLabel.value == value)))
    return conditions


_ORDER_OF_CLAIMS = (_job.priority.desc(), _job.created_at, _job.id)
_LINE = (
    select(_job.id, _job.created_at, func.row_number().over(order_by=_ORDER_OF_CLAIMS).label("place"))
    .where(
        _job.tenant_id == bindparam("tenant_id"), _job.status == literal_column("'queued'")
    )  # as the index has it: a parameter might be anything
    .order_by(*_ORDER_OF_CLAIMS)
    .limit(bindparam("depth"))
    .subquery()
)
_PLACES = select(_LINE.c.id, _LINE.c.place).where(_LINE.c.created_at.between(bindparam("oldest"), bindparam("newest")))


def places(connection: Connection, jobs: Iterable[Listed]) -> dict[str, Place]:
    """Id -> where the job stands in its tenant's queue, of those of the jobs that are queued. Positions end with
    QUEUE_DEPTH.

    There may be others made in the same time: a range of times is one statement, however many jobs there are.
    """
    queued: dict[str, list[Listed]] = {}
    for job in jobs:
        if job.status == "queued":
            queued.setdefault(job.tenant_id, []).append(job)
    found: dict[str, Place] = {}
    workers = live(connection) if queued else []
    for tenant_id, of_tenant in queued.items():
        times = [job.created_at for job in of_tenant]
        asked = {"tenant_id": tenant_id, "depth": QUEUE_DEPTH, "oldest": min(times), "newest": max(times)}
        positions = {row[0]: row[1] for row in connection.execute(_PLACES, asked)}
        for job in of_tenant:
            needs = Needs(job.queue, job.devices, job.methods, job.peak_memory_bytes)
            found[job.id] = Place(positions.get(job.id), waiting_for(workers, needs))
    return found


_key = table(ApiKey).c
_KEY = select(*KEY_COLUMNS).where(_key.hash == bindparam("key_hash"))
_KEYS_AND_JOBS = (
    select(*KEY_COLUMNS, *COLUMNS)
    .join_from(
        table(ApiKey),
        table(Job),
        (_job.tenant_id == _key.tenant_id) & _job.id.in_(bindparam("job_ids", expanding=True)),
        isouter=True,
    )
    .where(_key.hash.in_(bindparam("key_hashes", expanding=True)))
)


def keys_and_jobs(
    connection: Connection, key_hashes: Sequence[str], job_ids: Sequence[str]
) -> tuple[dict[str, KeyView], dict[tuple[str, str], JobView]]:
    """The keys by hash, and by (tenant, id) those of the jobs that belong to the keys' tenants. One query.

    An id of no job is "".
    """
    keys: dict[str, KeyView] = {}
    jobs: dict[tuple[str, str], JobView] = {}
    if len(key_hashes) == 1 and not any(job_ids):
        row = connection.execute(_KEY, {"key_hash": key_hashes[0]}).one_or_none()
        return ({} if row is None else {row[0]: KeyView(*row)}), jobs
    width = len(KEY_COLUMNS)
    for row in connection.execute(_KEYS_AND_JOBS, {"key_hashes": key_hashes, "job_ids": job_ids}):
        key = KeyView(*row[:width])
        keys[key.hash] = key
        if row[width] is not None:
            jobs[key.tenant_id, row[width]] = JobView(*row[width:])
    return keys, jobs


def label_count(session: Session, job_id: str) -> int:
    return session.execute(select(func.count()).where(JobLabel.job_id == job_id)).scalar_one()


def events(session: Session, tenant_id: str, job_id: str, *, after: int, limit: int) -> Sequence[Event]:
    return session.scalars(
        _of_job(Event, tenant_id, job_id).where(Event.seq > after).order_by(Event.seq).limit(limit)
    ).all()


def attempts(session: Session, tenant_id: str, job_id: str) -> Sequence[Attempt]:
    return session.scalars(_of_job(Attempt, tenant_id, job_id).order_by(Attempt.number)).all()


def attempt(session: Session, tenant_id: str, job_id: str, number: int) -> Attempt | None:
    return session.scalar(_of_job(Attempt, tenant_id, job_id).where(Attempt.number == number))


def artifacts(session: Session, tenant_id: str, job_id: str) -> Sequence[Artifact]:
    return session.scalars(_of_job(Artifact, tenant_id, job_id).order_by(Artifact.path)).all()


def artifact(session: Session, tenant_id: str, job_id: str, path: str) -> Artifact | None:
    return session.scalar(_of_job(Artifact, tenant_id, job_id).where(Artifact.path == path))


def removed_artifacts(session: Session, tenant_id: str, job_id: str) -> Sequence[RemovedArtifact]:
    return session.scalars(_of_job(RemovedArtifact, tenant_id, job_id).order_by(RemovedArtifact.path)).all()


def report(session: Session, tenant_id: str, job_id: str) -> dict[str, Any] | None:
    record = session.scalar(_of_job(ReportRecord, tenant_id, job_id))
    return None if record is None else record.body


def idempotency_key(session: Session, tenant_id: str, route: str, key: str) -> IdempotencyKey | None:
    """The remembered answer, unless its time is over."""
    return session.scalar(
        select(IdempotencyKey).where(
            IdempotencyKey.tenant_id == tenant_id,
            IdempotencyKey.route == route,
            IdempotencyKey.key == key,
            IdempotencyKey.expires_at > now_ms(),
        )
    )


def _of_job(record: type[Child], tenant_id: str, job_id: str) -> Select[Child]:
    return select(record).join(Job, Job.id == record.job_id).where(record.job_id == job_id, Job.tenant_id == tenant_id)
