"""Requirements of jobs against what the live workers have: why none of them can take a job."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Connection, Text, cast, select

from app.db import now_ms, table
from app.jobs.models import WorkerRecord
from workers.engine.contracts.params import STAGES
from workers.engine.spec import CompressionSpec


def queue_of(spec: CompressionSpec) -> str:
    """`gpu` for what only a worker with GPUs may take, else `any`."""
    return "gpu" if spec.compute.device == "cuda" else "any"


def methods_of(spec: Mapping[str, Any]) -> str:
    """Those of a spec as JSON, as Job.methods has them."""
    chosen = [each for stage in STAGES for each in _several(spec.get(stage))]
    return f" {' '.join(dict.fromkeys(each['method'] for each in chosen))} "


def _several(stage: Any) -> list[Any]:
    return stage if isinstance(stage, list) else [stage] if stage else []


class Needs(NamedTuple):
    """Requirements of a job."""

    queue: str
    devices: int
    methods: str
    """As Job.methods has them."""
    memory_bytes: int | None = None
    """That each of its processes, one a device, must have: a prediction; None where there is none."""


class Live(NamedTuple):
    """A live worker, or several that have the same."""

    kind: str
    devices: int
    memory_bytes: int | None
    """The host's, or of it what the worker may take; None where that is not known."""
    device_memory_bytes: int | None
    """Of its smallest GPU; None where it has none, or that is not known."""
    methods: frozenset[str] | None
    """None of a worker older than this field."""

    def lacks(self, methods: str) -> set[str]:
        return set() if self.methods is None else set(methods.split()) - self.methods

    def room(self, devices: int) -> int | None:
        return room(self.kind, self.memory_bytes, self.device_memory_bytes, devices)


_worker = table(WorkerRecord).c
_LIVE = (
    select(
        _worker.kind,
        _worker.devices,
        _worker.memory_bytes,
        _worker.device_memory_bytes,
        cast(_worker.methods, Text),
    )
    .where(_worker.expires_at > now_ms())
    .distinct()
)


def live(connection: Connection) -> list[Live]:
    return [Live(*row[:4], _names(row[4])) for row in connection.execute(_LIVE)]  # type: ignore[call-arg]


def names(methods: Mapping[str, Iterable[str]]) -> frozenset[str]:
    """Of all stages; no two stages share one."""
    return frozenset(name for of_stage in methods.values() for name in of_stage)


@lru_cache(maxsize=256)
def _names(text: str | None) -> frozenset[str] | None:
    return names(orjson.loads(text) or {}) or None if text else None


def waiting_for(workers: Sequence[Live], needs: Needs) -> str | None:
    """The reason why no live worker can take a job that needs this; None if one can."""
    if not workers:
        return "there is no live worker"
    gpu = needs.queue == "gpu"
    able = [worker for worker in workers if worker.kind == "gpu" or not gpu]
    if not able:
        return "no live worker has a GPU"
    most = max(worker.devices for worker in able)
    if needs.devices > most:
        return f"no live worker has {needs.devices} {'GPU' if gpu else 'device'}s; the largest has {most}"
    able = [worker for worker in able if worker.devices >= needs.devices]
    such = f" with {needs.devices} {'GPU' if gpu else 'device'}s" if needs.devices > 1 else " with a GPU" * gpu
    lacking = min((worker.lacks(needs.methods) for worker in able), key=len)
    if lacking:
        return f"no live worker{such} has the method{'s' * (len(lacking) > 1)} {' and '.join(sorted(lacking))}"
    able = [worker for worker in able if not worker.lacks(needs.methods)]
    rooms = [worker.room(needs.devices) for worker in able]
    if needs.memory_bytes is None or any(has is None or needs.memory_bytes <= has for has in rooms):
        return None
    most = max(has for has in rooms if has is not None)
    each = f" on each of {needs.devices} {'GPU' if gpu else 'device'}s" if needs.devices > 1 else ""
    has = f"no live worker has more memory than {_gib(most)}{' for each' if each else ''}"
    return f"it takes at least {_gib(needs.memory_bytes)}{each}, and {has}"


def room(kind: str, memory_bytes: int | None, device_memory_bytes: int | None, devices: int) -> int | None:
    """Memory for each process of a job on so many devices of a worker: its GPU's, or a part of the host's. None where
    that is not known."""
    if kind == "gpu":
        return device_memory_bytes
    return None if memory_bytes is None else memory_bytes // devices


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
