"""Sweeps: jobs that differ in a few fields of their spec."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from espalier.documents.base import Document
from espalier.documents.jobs import JobFailure, MetricSummary, Price


class SweepChild(Document):
    """A job of a sweep: `values` is what it differs in, by JSON pointer."""

    number: int
    values: dict[str, Any]
    job_id: str | None = None
    status: str
    verdict: str | None = None
    metrics: dict[str, MetricSummary] | None = None
    error: JobFailure | None = None
    stopped_by: int | None = None


class SweepSummary(Document):
    """A sweep without its children. `status` is running or completed."""

    id: str
    name: str | None = None
    status: str
    counts: dict[str, int]
    parameters: list[str]
    created_at: datetime


class SweepDocument(SweepSummary):
    """A sweep as it was when the service last said so."""

    children: list[SweepChild]


class PlannedChild(Document):
    """What a child would do."""

    number: int
    values: dict[str, Any]
    spec_digest: str
    parameters_after: int | None = None
    zeros_after: int | None = None
    bytes_after: int | None = None
    peak_memory_bytes: int
    elapsed_s: float
    warnings: list[str]


class SweepPlan(Document):
    """What a sweep would do: memory of its largest child, time of all one after another."""

    children: list[PlannedChild]
    peak_memory_bytes: int
    elapsed_s: float
    price: Price | None = None


class Axis(Document):
    """A measurement that children are compared by."""

    metric: str
    unit: str
    higher_is_better: bool
    dense: float | None = None
    tolerance: float


class ParetoPoint(Document):
    """A child's quality and cost."""

    number: int
    job_id: str
    values: dict[str, Any]
    methods: dict[str, str]
    quality: float
    cost: float
    quality_stderr: float | None = None
    cost_stderr: float | None = None
    verdict: str | None = None
    on_front: bool


class LeftOut(Document):
    """A child that is not compared."""

    number: int
    reason: str


class Pareto(Document):
    """Quality against cost over the children that have succeeded."""

    sweep_id: str
    quality: Axis | None = None
    cost: Axis | None = None
    points: list[ParetoPoint]
    left_out: list[LeftOut]
    metrics: list[str]
