"""Live workers: how they make themselves known.

A worker is one `espalier worker`: a pool of supervisors, one job each, and the devices it hands out among these jobs. A
device is a GPU, or of a worker without GPUs a share of the processors. See attempts.py for who gets which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sqlalchemy import case, delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.db import now_ms, table
from app.jobs.models import DeviceLease, Job, WorkerRecord
from app.jobs.needs import Live, names, room
from app.prices import of_devices


@dataclass(frozen=True)
class Hardware:
    """A device, as far as it is known."""

    model: str | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Worker:
    id: str
    name: str
    """Host and process, for people."""
    kind: Literal["cpu", "gpu"]
    devices: Mapping[str, str]
    """Key -> name, in the order they are handed out. The key is unique among all workers, but for those that share the
    device; the name is for the job's process.
    """
    hardware: Mapping[str, Hardware] = field(default_factory=dict)
    """Name -> what the device is; shares of the processors are none."""
    memory_bytes: int | None = None
    """The host's, or of it what the worker may take."""
    methods: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Stage -> names of the methods that it has. Empty where it does not say: it takes any job then."""
    prices: Mapping[str, int] = field(default_factory=dict)
    """Model or kind of a device -> price of a second of it, billionths of the currency."""
    currency: str = ""
    lacks: set[str] = field(default_factory=set, compare=False)
    """Those that jobs have asked for and it does not have, as far as its claims have come upon them."""

    @property
    def device_memory_bytes(self) -> int | None:
        """Of the smallest device; None where that is not known of one."""
        sizes = [self.hardware.get(name, Hardware()).memory_bytes for name in self.devices.values()]
        return None if None in sizes else min((size for size in sizes if size is not None), default=None)

    @property
    def queues(self) -> tuple[str, ...]:
        return ("any", "gpu") if self.kind == "gpu" else ("any",)

    def room(self, devices: int) -> int | None:
        """Memory for each process of a job on so many of its devices; None where that is not known."""
        return room(self.kind, self.memory_bytes, self.device_memory_bytes, devices)

    def price(self, keys: Sequence[str]) -> int | None:
        """Of a second of these of its devices, billionths of the currency; None where one has no price."""
        models = [self.hardware.get(self.devices[key], Hardware()).model for key in keys]
        return of_devices(self.prices, self.kind, models)

    def missing(self, methods: str) -> set[str]:
        """Those of a job's methods, as Job.methods has them, that it does not have."""
        return set(methods.split()) - names(self.methods) if self.methods else set()


def make_known(
    session: Session, worker: Worker, *, ttl_s: float, use: Sequence[Mapping[str, Any]] | None = None
) -> None:
    """Let the worker count as alive for so long. Locks its row: its claims come one after the other.

    `use` is what is used of its devices, as `WorkerRecord.use` has it, where somebody has looked.
    """
    expires_at = now_ms() + int(ttl_s * 1000)
    seen = {} if use is None else {"use": [dict(each) for each in use]}
    renew = (
        update(WorkerRecord)
        .where(WorkerRecord.id == worker.id)
        .values(expires_at=expires_at, seen_at=now_ms(), **seen)
        .returning(WorkerRecord.id)
        .execution_options(synchronize_session=False)
    )
    while session.execute(renew).one_or_none() is None:
        with suppress(IntegrityError), session.begin_nested():  # another process of this worker was faster
            session.execute(
                insert(table(WorkerRecord)).values(
                    id=worker.id,
                    name=worker.name,
                    kind=worker.kind,
                    devices=len(worker.devices),
                    expires_at=expires_at,
                    seen_at=now_ms(),
                    **seen,
                    memory_bytes=worker.memory_bytes,
                    device_memory_bytes=worker.device_memory_bytes,
                    parts=[
                        {"key": key, "name": name, **asdict(worker.hardware.get(name, Hardware()))}
                        for key, name in worker.devices.items()
                    ],
                    methods={stage: list(names) for stage, names in worker.methods.items()},
                )
            )


def forget(session: Session, worker: Worker) -> None:
    """The worker takes no more jobs."""
    session.execute(delete(WorkerRecord).where(WorkerRecord.id == worker.id))


def forget_silent(session: Session) -> None:
    """Drop workers that are not alive any more."""
    session.execute(delete(WorkerRecord).where(WorkerRecord.expires_at < now_ms()))


def known(session: Session) -> Sequence[tuple[WorkerRecord, bool]]:
    """(worker, whether it is alive), those with GPUs first, then by name. A silent one is forgotten within hours."""
    alive = case((WorkerRecord.expires_at > now_ms(), True), else_=False)
    rows = session.execute(
        select(WorkerRecord, alive).order_by(WorkerRecord.kind.desc(), WorkerRecord.name, WorkerRecord.id)
    )
    return [(row[0], row[1]) for row in rows]


def jobs_on_devices(session: Session) -> dict[str, tuple[str, str]]:
    """Key of a device -> (job, its tenant) of those that a job holds."""
    rows = session.execute(
        select(DeviceLease.device, DeviceLease.job_id, Job.tenant_id).join(Job, Job.id == DeviceLease.job_id)
    )
    return {row.device: (row.job_id, row.tenant_id) for row in rows}


def idle(session: Session, worker: Worker) -> list[Live]:
    """The other live workers, with as many devices as they have free; without those that have none free."""
    held = set(session.scalars(select(DeviceLease.device)))
    found = []
    for other in session.scalars(
        select(WorkerRecord).where(WorkerRecord.expires_at > now_ms(), WorkerRecord.id != worker.id)
    ):
        if free := sum(part["key"] not in held for part in other.parts or []):
            methods = names(other.methods) if other.methods else None
            found.append(Live(other.kind, free, other.memory_bytes, other.device_memory_bytes, methods))
    return found
