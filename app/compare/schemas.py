"""A comparison of jobs, as OpenAPI shows it. Lists of values have an entry for each job, in the order of `jobs`."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, Field, JsonValue

from app.http.generators import IS
from app.jobs.schemas import JobFailure, Read
from app.jobs.views import JOB_ID
from workers.engine.report import GateResult, TunePoint, Verdict


class ComparedJob(Read):
    """One of the jobs. What a report says is null of a job that has failed or was cancelled."""

    id: str = Field(examples=[JOB_ID])
    status: Literal["succeeded", "failed", "cancelled"]
    labels: dict[str, str]
    spec: dict[str, JsonValue] = Field(json_schema_extra={IS: "CompressionSpec"})  # maybe of another version
    spec_digest: str
    error: JobFailure | None
    created_at: AwareDatetime
    finished_at: AwareDatetime
    verdict: Verdict | None
    gates: list[GateResult] = Field(description="Its gates, judged.")
    sparsity: float | None = Field(description="Fraction of the prunable parameters removed.")
    target_sparsity: float | None
    parameters: int | None = Field(description="Of the dense model.")
    parameters_after: int | None
    zeros: int | None = Field(description="In the pruned layers of the result.")
    weight_bytes: int | None = Field(description="Of the stored result's safetensors files; null without any.")


class SpecValue(Read):
    absent: bool = Field(description="The job's spec has no such field: another method, a shorter list.")
    value: str | int | float | bool | None


class SpecDifference(Read):
    """A field that is not the same in all specs."""

    path: str = Field(description="Where it is, with dots.", examples=["prune.sparsity", "evaluate.0.dataset"])
    only_defaults: bool = Field(
        description="A setting of a method that some of the jobs do not have, at its default in all the others."
    )
    values: list[SpecValue]


class MetricValue(Read):
    """A measurement of one job. Intervals hold the true value with 95 %: both ends are the value where it is exact;
    null where its error is not known."""

    dense: float
    pruned: float
    pruned_interval: tuple[float, float] | None
    ratio: float | None = Field(description="pruned / dense; null when dense is zero.")
    ratio_interval: tuple[float, float] | None
    difference_interval: tuple[float, float] | None = Field(description="Of pruned - dense.")


class MetricComparison(Read):
    name: str
    unit: str
    higher_is_better: bool | None
    same_dense: bool = Field(
        description="The dense values are within 0.1 % of one another. Else the jobs measured on other texts, windows "
        "or machines, or other models, and the pruned values do not compare."
    )
    values: list[MetricValue | None]


class LayerComparison(Read):
    """A layer as each job left it; null of a job that has no such layer."""

    name: str
    block: int
    parameters: list[int | None] = Field(description="Of the dense layer.")
    sparsity: list[float | None]
    outputs: list[int | None] = Field(description="Rows of its weight; 0 where its block was dropped.")
    inputs: list[int | None] = Field(description="Columns, likewise.")


class CurveComparison(Read):
    stage: Literal["train", "tune"]
    curves: list[list[TunePoint] | None]


class Comparison(Read):
    jobs: list[ComparedJob]
    spec: list[SpecDifference]
    metrics: list[MetricComparison]
    layers: list[LayerComparison]
    curves: list[CurveComparison] = Field(description="Of the trainings that any of the jobs has done.")
