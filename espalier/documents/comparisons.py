"""Finished jobs beside one another. Lists of values have an entry for each job, in the order of `jobs`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from espalier.documents.base import Document
from espalier.documents.jobs import JobFailure
from espalier.documents.reports import Gate


class ComparedJob(Document):
    """One of the jobs. Sizes and sparsity are None of a job without a result."""

    id: str
    status: str
    labels: dict[str, str]
    spec: dict[str, Any]
    spec_digest: str
    error: JobFailure | None = None
    created_at: datetime
    finished_at: datetime
    verdict: str | None = None
    gates: list[Gate]
    sparsity: float | None = None
    parameters: int | None = None
    parameters_after: int | None = None
    zeros: int | None = None
    weight_bytes: int | None = None


class SpecValue(Document):
    """A job's value of a field; `absent` where its spec has no such field."""

    absent: bool
    value: str | int | float | bool | None = None


class SpecDifference(Document):
    """A field that is not the same in all specs, by its path with dots."""

    path: str
    only_defaults: bool
    values: list[SpecValue]


class MetricValue(Document):
    """A measurement of one job; intervals hold the true value with 95 %."""

    dense: float
    pruned: float
    pruned_interval: tuple[float, float] | None = None
    ratio: float | None = None
    ratio_interval: tuple[float, float] | None = None
    difference_interval: tuple[float, float] | None = None


class MetricComparison(Document):
    """A measurement of all jobs. They compare where `same_dense`."""

    name: str
    unit: str
    higher_is_better: bool | None = None
    same_dense: bool
    values: list[MetricValue | None]


class LayerComparison(Document):
    """A layer as each job left it."""

    name: str
    block: int
    parameters: list[int | None]
    sparsity: list[float | None]
    outputs: list[int | None]
    inputs: list[int | None]


class CurvePoint(Document):
    """Losses at one step of a training, in nats a token."""

    step: int
    holdout_loss: float
    train_loss: float | None = None


class CurveComparison(Document):
    """The losses of a training, `train` or `tune`; None of a job without it."""

    stage: str
    curves: list[list[CurvePoint] | None]


class Comparison(Document):
    """Two to eight finished jobs: where specs differ, what was measured, what became of layers, how they learnt."""

    jobs: list[ComparedJob]
    spec: list[SpecDifference]
    metrics: list[MetricComparison]
    layers: list[LayerComparison]
    curves: list[CurveComparison]
