"""The service's state as Prometheus metrics, read from the database at each scrape: every replica says the same."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.db import Database
from app.jobs import counts
from app.jobs.models import STATUSES


class StateCollector(Collector):
    """Has no label that names a tenant or a job."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def describe(self) -> Iterator[Metric]:
        """Nothing: registering must not ask the database."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        with self._database.read() as session:
            by_status = counts.count_by_status(session)
            failures = counts.count_failures(session)
            devices = counts.count_devices(session)
            state = counts.backlog(session)
        jobs = GaugeMetricFamily("espalier_jobs", "Jobs by status.", labels=["status"])
        for status in STATUSES:
            jobs.add_metric([status], by_status.get(status, 0))
        yield jobs
        failed = CounterMetricFamily("espalier_job_failures", "Failed attempts by error code.", labels=["code"])
        for code, count in failures.items():
            failed.add_metric([code], count)
        yield failed
        known = GaugeMetricFamily("espalier_devices", "Devices of live workers.", labels=["kind"])
        for kind in ("cpu", "gpu"):
            known.add_metric([kind], devices.get(kind, 0))
        yield known
        for name, value, meaning in (
            ("espalier_devices_held", state.devices_held, "Devices that jobs hold."),
            ("espalier_outbox_pending", state.outbox_pending, "Messages to workers not yet published."),
            ("espalier_outbox_oldest_seconds", state.outbox_oldest_s, "How long the oldest of them has been due."),
            ("espalier_queue_oldest_seconds", state.queue_oldest_s, "How long the oldest queued job has been due."),
            ("espalier_lease_expired", state.leases_expired, "Jobs whose worker is silent past its lease, now."),
        ):
            yield GaugeMetricFamily(name, meaning, value=value)
