"""Jobs beside one another, as a pure function of their specs and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from app.compare.schemas import (
    ComparedJob,
    Comparison,
    CurveComparison,
    LayerComparison,
    MetricComparison,
    MetricValue,
)
from app.compare.specs import differences
from app.jobs.views import JobView, iso
from workers.engine.maths.standard_errors import CONFIDENCE, half_width
from workers.engine.report import Metric, Report

SAME = 1e-3
"""Relative difference within which the dense model's values count as the same."""
TRAININGS: tuple[Literal["train", "tune"], ...] = ("train", "tune")


@dataclass(frozen=True)
class Finished:
    job: JobView
    report: Report | None
    """Without its layers; None where the job has not succeeded."""
    layers: Sequence[dict[str, Any]]
    """LayerReports as JSON: of experts there are tens of thousands, and to make objects of them holds others up."""
    weight_bytes: int | None


def compare(finished: Sequence[Finished]) -> Comparison:
    jobs = [_job(each) for each in finished]
    reports = [each.report for each in finished]
    return Comparison(
        jobs=jobs,
        spec=differences([orjson.loads(each.job.spec) for each in finished]),
        metrics=_metrics(reports),
        layers=_layers([each.layers for each in finished]),
        curves=_curves(reports),
    )


def _job(of: Finished) -> ComparedJob:
    job, report = of.job, of.report
    return ComparedJob.model_validate(
        {
            "id": job.id,
            "status": job.status,
            "labels": orjson.loads(job.labels) if job.labels else {},
            "spec": orjson.loads(job.spec),
            "spec_digest": job.spec_digest,
            "error": orjson.loads(job.error) if job.error else None,
            "created_at": iso(job.created_at),
            "finished_at": iso(job.finished_at),
            "verdict": job.verdict,
            "gates": report.gates if report else [],
            "weight_bytes": of.weight_bytes,
            **{name: getattr(report, name, None) for name in _SIZES},
        }
    )


_SIZES = ("sparsity", "target_sparsity", "parameters", "parameters_after", "zeros")


def _metrics(reports: Sequence[Report | None]) -> list[MetricComparison]:
    by_name = [{metric.name: metric for metric in report.metrics} if report else {} for report in reports]
    return [_metric([each.get(name) for each in by_name]) for name in _names(by_name)]


def _metric(found: Sequence[Metric | None]) -> MetricComparison:
    known = [metric for metric in found if metric]
    first, dense = known[0], [metric.dense for metric in known]
    return MetricComparison(
        name=first.name,
        unit=first.unit,
        higher_is_better=first.higher_is_better,
        same_dense=max(dense) - min(dense) <= SAME * abs(first.dense),
        values=[metric and _value(metric) for metric in found],
    )


def _value(metric: Metric) -> MetricValue:
    exact = metric.interval_over is None
    freedom = metric.degrees_of_freedom
    difference = metric.pruned - metric.dense
    return MetricValue(
        dense=metric.dense,
        pruned=metric.pruned,
        pruned_interval=_interval(metric.pruned, metric.pruned_stderr, metric.pruned_degrees_of_freedom, exact),
        ratio=metric.ratio,
        ratio_interval=_interval(metric.ratio, metric.ratio_stderr, freedom, exact),
        difference_interval=_interval(difference, metric.difference_stderr, freedom, exact),
    )


def _interval(
    value: float | None, stderr: float | None, freedom: float | None, exact: bool
) -> tuple[float, float] | None:
    if value is None or (stderr is None and not exact):
        return None
    margin = half_width(stderr, freedom, CONFIDENCE) if stderr else 0.0
    return value - margin, value + margin


def _layers(layers: Sequence[Sequence[dict[str, Any]]]) -> list[LayerComparison]:
    by_name = [{layer["name"]: layer for layer in each} for each in layers]
    return [_layer(name, [each.get(name) for each in by_name]) for name in _names(by_name)]


def _layer(name: str, found: Sequence[dict[str, Any] | None]) -> LayerComparison:
    return LayerComparison(
        name=name,
        block=next(layer["block"] for layer in found if layer),
        parameters=[layer and layer["parameters"] for layer in found],
        sparsity=[layer and layer["sparsity"] for layer in found],
        outputs=[layer and layer["shape"][0] for layer in found],
        inputs=[layer and layer["shape"][1] for layer in found],
    )


def _curves(reports: Sequence[Report | None]) -> list[CurveComparison]:
    found = {stage: [getattr(report, stage, None) for report in reports] for stage in TRAININGS}
    return [
        CurveComparison(stage=stage, curves=[training and training.curve for training in trainings])
        for stage, trainings in found.items()
        if any(trainings)
    ]


def _names(by_name: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for each in by_name for name in each))
