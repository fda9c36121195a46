"""Workers and their devices, busy and idle, and what is used of them, as metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from sqlalchemy.orm import Session

from app.jobs import fleet


def metrics(session: Session) -> Iterator[Metric]:
    """Of live workers. Several on one host share its devices, which are shown once, as they were last seen."""
    held = fleet.jobs_on_devices(session)
    states = {(kind, state): 0 for kind in ("cpu", "gpu") for state in ("busy", "idle")}
    use: dict[tuple[str, str], tuple[int, dict[str, float | None]]] = {}
    for worker, alive in fleet.known(session):
        if not alive:
            continue
        busy = any(part["key"] in held for part in worker.parts or [])
        states[worker.kind, "busy" if busy else "idle"] += 1
        host = worker.name.rpartition(":")[0] or worker.name
        for seen in worker.use or []:
            at = (host, seen["device"])
            if at not in use or use[at][0] < (worker.seen_at or 0):
                use[at] = (worker.seen_at or 0, seen)
    family = GaugeMetricFamily(
        "espalier_workers", "Live workers; busy if a job holds a device.", labels=["kind", "state"]
    )
    for (kind, state), count in states.items():
        family.add_metric([kind, state], count)
    yield family
    for name, column, meaning in (
        ("espalier_device_memory_bytes", "memory_bytes", "There is of a GPU's memory, or the host's."),
        ("espalier_device_memory_used_bytes", "memory_used_bytes", "What is used of it."),
        ("espalier_device_busy_ratio", "busy", "Of a GPU, or the host's processors, in the time before it was seen."),
    ):
        family = GaugeMetricFamily(name, meaning, labels=["host", "device"])
        for (host, device), (_, seen) in sorted(use.items()):
            if (value := seen[column]) is not None:
                family.add_metric([host, device], value)
        yield family
