"""The service's state as Prometheus metrics, read from the database at each scrape.

Every replica says the same, so rules take the `max` over replicas and not the sum. Totals since the database was made
are counters and histograms; what may fall is a gauge. The times of requests alone are each process's own, and are
summed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.orm import Session

from app.db import Database
from app.jobs import counts, figures
from app.jobs.models import STATUSES
from app.metrics import observations, workers
from app.metrics.observations import Series, Total
from app.publications import pending as publications
from app.webhooks import waiting
from app.webhooks.deliverer import TRIES

SERIES = (*figures.EVERY, TRIES, publications.TRIES)
MOST_TENANTS = 200
"""The oldest so many are named where tenants are."""
ALL, OTHERS = "all", "others"


class StateCollector(Collector):
    """Names no job, and tenants only where that is asked for."""

    def __init__(self, database: Database, *, tenants: bool) -> None:
        self._database, self._tenants = database, tenants

    def describe(self) -> Iterator[Metric]:
        """Nothing: registering must not ask the database."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        with self._database.read() as session:
            yield from [*_backlog(session), *self._stored(session), *self._totals(session), *workers.metrics(session)]

    def _stored(self, session: Session) -> Iterator[Metric]:
        names, sizes = self._names(session), dict[str, int]()
        for tenant_id, size in counts.stored_bytes(session).items():
            name = names.get(tenant_id, OTHERS)
            sizes[name] = sizes.get(name, 0) + size
        family = GaugeMetricFamily("espalier_stored_bytes", "Of results in the artifact store.", labels=["tenant"])
        for name, size in (sizes or {ALL: 0}).items():
            family.add_metric([name], size)
        yield family

    def _totals(self, session: Session) -> Iterator[Metric]:
        found = observations.totals(session)
        names = self._names(session)
        for series in SERIES:
            totals = {labels: Total() for labels in series.always}
            for (metric, labels), total in found.items():
                if metric == series.name:
                    named = (
                        tuple(names.get(each, OTHERS) for each in labels) if series.labels == ("tenant",) else labels
                    )
                    totals.setdefault(named, Total()).add(total)
            yield _family(series, totals)

    def _names(self, session: Session) -> dict[str, str]:
        """Tenant -> value of its label."""
        oldest = counts.oldest_tenants(session)
        if self._tenants:
            return dict(oldest[:MOST_TENANTS])
        return {tenant_id: ALL for tenant_id, _ in oldest}


def _family(series: Series, totals: Mapping[tuple[str, ...], Total]) -> Metric:
    if series.counter:
        counter = CounterMetricFamily(series.name, series.meaning, labels=series.labels)
        for labels, total in totals.items():
            counter.add_metric(labels, total.count)
        return counter
    histogram = HistogramMetricFamily(series.name, series.meaning, labels=series.labels)
    for labels, total in totals.items():
        histogram.add_metric(labels, total.cumulative(), total.sum_ms / 1000)
    return histogram


def _backlog(session: Session) -> Iterator[Metric]:
    by_status, devices = counts.count_by_status(session), counts.count_devices(session)
    jobs = GaugeMetricFamily("espalier_jobs", "Jobs by status.", labels=["status"])
    for status in STATUSES:
        jobs.add_metric([status], by_status.get(status, 0))
    yield jobs
    known = GaugeMetricFamily("espalier_devices", "Devices of live workers.", labels=["kind"])
    for kind in ("cpu", "gpu"):
        known.add_metric([kind], devices.get(kind, 0))
    yield known
    state, undelivered = counts.backlog(session), waiting.undelivered(session)
    unpublished = publications.pending(session)
    for name, value, meaning in (
        ("espalier_devices_held", state.devices_held, "Devices that jobs hold."),
        ("espalier_outbox_pending", state.outbox_pending, "Messages to workers not yet published."),
        ("espalier_outbox_oldest_seconds", state.outbox_oldest_s, "How long the oldest of them has been due."),
        ("espalier_queue_oldest_seconds", state.queue_oldest_s, "How long the oldest queued job could have run."),
        ("espalier_lease_expired", state.leases_expired, "Jobs whose worker is silent past its lease, now."),
        ("espalier_webhooks_pending", undelivered.number, "Webhook deliveries that have not arrived yet."),
        ("espalier_webhooks_oldest_seconds", undelivered.oldest_s, "How long ago the oldest of them happened."),
        ("espalier_publications_pending", unpublished.number, "Publications that are due or at work."),
        ("espalier_publications_oldest_seconds", unpublished.oldest_s, "Since when the oldest of them could be done."),
    ):
        yield GaugeMetricFamily(name, meaning, value=value)
