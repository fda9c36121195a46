"""Write measurements down, add them up, read the totals. Functions take a session and never commit."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import delete, func, insert, literal, select, union_all, update
from sqlalchemy.orm import Session

from app.db import table
from app.metrics.models import HistogramCell, Observation

BOUNDS_MS = tuple(
    int(seconds * 1000)
    for seconds in (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600, 72 * 3600)
)
ENDLESS = 2**62
"""Bound of what is above all others."""


@dataclass(frozen=True)
class Series:
    """A metric: a histogram of seconds, or a counter."""

    name: str
    meaning: str
    labels: tuple[str, ...] = ()
    counter: bool = False
    always: tuple[tuple[str, ...], ...] = ()
    """Label values that are there before anything has happened, so that the first time is seen to be a rise."""


@dataclass
class Total:
    """All observations of one metric with one set of label values."""

    counts: Counter[int] = field(default_factory=Counter)
    """Bound in ms -> how many are below it, and not below the one before."""
    sum_ms: int = 0

    @property
    def count(self) -> int:
        return self.counts.total()

    def add(self, other: Total) -> None:
        self.counts.update(other.counts)
        self.sum_ms += other.sum_ms

    def cumulative(self) -> list[tuple[str, float]]:
        """(bound in s, how many are not above it), as Prometheus has them. Counts of a bound that an earlier version
        had stand with the next larger one."""
        bounds = [*BOUNDS_MS, ENDLESS]
        below = [sum(count for at, count in self.counts.items() if at <= bound) for bound in bounds]
        names = [*(f"{bound / 1000:g}" for bound in BOUNDS_MS), "+Inf"]
        return list(zip(names, map(float, below), strict=True))


def note(session: Session, series: Series, labels: Sequence[str], value_ms: int = 0, *, times: int = 1) -> None:
    """Write it down, in the caller's transaction."""
    assert len(labels) == len(series.labels)
    value_ms = max(value_ms, 0)
    index = bisect_left(BOUNDS_MS, value_ms)
    row = {
        "metric": series.name,
        "labels": json.dumps(list(labels)),
        "bound_ms": BOUNDS_MS[index] if index < len(BOUNDS_MS) and not series.counter else ENDLESS,
        "value_ms": value_ms,
    }
    if times:
        session.execute(insert(table(Observation)), [row] * times)


def add_up(session: Session, *, limit: int = 5000) -> int:
    """Move the oldest observations into the totals; returns how many. Of two that do it at once each has its own."""
    taken = select(Observation.id).order_by(Observation.id).limit(limit).with_for_update(skip_locked=True)
    _ob = table(Observation).c
    rows = session.execute(
        delete(Observation)
        .where(Observation.id.in_(taken))
        .returning(_ob.metric, _ob.labels, _ob.bound_ms, _ob.value_ms),
        execution_options={"synchronize_session": False},
    ).all()
    counts, sums = Counter[tuple[str, str, int]](), Counter[tuple[str, str, int]]()
    for metric, labels, bound_ms, value_ms in rows:
        counts[metric, labels, bound_ms] += 1
        sums[metric, labels, bound_ms] += value_ms
    for cell in sorted(counts):  # in one order, so that no two wait for each other
        _add(session, cell, counts[cell], sums[cell])
    return len(rows)


def totals(session: Session) -> dict[tuple[str, tuple[str, ...]], Total]:
    """(metric, label values) -> all that was ever noted. One statement: nothing is missed or counted twice while
    somebody adds up."""
    cell, seen = table(HistogramCell).c, table(Observation).c
    rows = union_all(
        select(cell.metric, cell.labels, cell.bound_ms, cell.count, cell.sum_ms),
        select(seen.metric, seen.labels, seen.bound_ms, literal(1).label("count"), seen.value_ms.label("sum_ms")),
    ).subquery()
    found: dict[tuple[str, tuple[str, ...]], Total] = {}
    for metric, labels, bound_ms, count, sum_ms in session.execute(
        select(rows.c.metric, rows.c.labels, rows.c.bound_ms, func.sum(rows.c.count), func.sum(rows.c.sum_ms)).group_by(
            rows.c.metric, rows.c.labels, rows.c.bound_ms
        )
    ):
        total = found.setdefault((metric, tuple(json.loads(labels))), Total())
        total.counts[bound_ms] += int(count)
        total.sum_ms += int(sum_ms)
    return found


def _add(session: Session, cell: tuple[str, str, int], count: int, sum_ms: int) -> None:
    metric, labels, bound_ms = cell
    added = session.execute(
        update(HistogramCell)
        .where(HistogramCell.metric == metric, HistogramCell.labels == labels, HistogramCell.bound_ms == bound_ms)
        .values(count=HistogramCell.count + count, sum_ms=HistogramCell.sum_ms + sum_ms)
        .returning(HistogramCell.count),
        execution_options={"synchronize_session": False},
    ).one_or_none()
    if added is None:  # where another makes the same one just now, one of the two fails and is done again
        values = {"metric": metric, "labels": labels, "bound_ms": bound_ms, "count": count, "sum_ms": sum_ms}
        session.execute(insert(table(HistogramCell)).values(values))
