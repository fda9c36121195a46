"""Requests and responses of the sweep endpoints, as OpenAPI shows them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, ConfigDict, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from app.http.generators import LIKE
from app.jobs.repository import TOTAL_MOST
from app.jobs.schemas import (
    SPEC_EXAMPLE,
    Days,
    JobFailure,
    JobStatus,
    LabelValue,
    MetricSummary,
    Price,
    Read,
    Request,
    Scheduling,
)
from workers.engine.report import Verdict

MAX_CHILDREN = 256
SWEEP_ID = "swp_01a201bb6ce13078a5210ce45142be09"
"""For examples."""
SWEEP_LABEL = "sweep"
"""The label of every child, its value the sweep's id: `GET /v1/jobs?label=sweep:swp_…` lists them."""
GATED_EXAMPLE = {
    **SPEC_EXAMPLE,  # type: ignore[dict-item]
    "gates": [{"metric": "perplexity/heldout.txt", "max": 1.2}],
}

Pointer = Annotated[
    str,
    Field(
        pattern=r"^(/[^/\x00-\x1f\x7f]{1,100}){1,8}$",
        description="JSON pointer into the spec (RFC 6901).",
        examples=["/prune/sparsity"],
    ),
]


class StopRule(Request):
    """When to give up on children that have not ended."""

    after_failures: int | None = Field(
        None, ge=1, le=MAX_CHILDREN, description="Once so many children have failed, the others are cancelled."
    )
    ascending: Pointer | None = Field(
        None,
        description="A number that the children differ in and that makes things worse as it grows. Once a child's "
        "verdict is `fail`, those that differ from it only in a larger value of this number are cancelled.",
    )

    @model_validator(mode="after")
    def _some_rule(self) -> StopRule:
        if self.after_failures is None and self.ascending is None:
            raise PydanticCustomError("rule_required", "give `after_failures` or `ascending`, or leave `stop` out")
        return self


class SweepRetention(Request):
    """How much stays of the children's results: all, all of those on the Pareto front, or the reports."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"keep": "front"}]})

    keep: Literal["all", "front", "report"] = Field(
        description="`front`: files of a child go when it is certain that it is not on the front, those of near misses "
        "when all children have ended. Equal ones are on it together; one whose gates fail is not."
    )
    days: Days = Field(0, description="Days after a child's end from when on that counts; everything stays until then.")
    quality: str | None = Field(
        None, max_length=300, description="Of the front: a measurement, as of `pareto`. Default: the same."
    )
    cost: str | None = Field(None, max_length=300, description="The same.")

    @model_validator(mode="after")
    def _every_field_has_an_effect(self) -> SweepRetention:
        if self.keep == "all" and self.days:
            raise PydanticCustomError("days_without_effect", "`all` stays for good: leave `days` out, or keep `report`")
        if self.keep != "front" and (self.quality or self.cost):
            raise PydanticCustomError("axes_without_effect", "the axes are those of `front`: leave them out")
        return self


class SweepSubmit(Scheduling):
    """Jobs that differ in a few fields of their spec."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "how far can it go",
                    "spec": GATED_EXAMPLE,
                    "grid": {
                        "/score": [{"method": "magnitude"}, {"method": "wanda"}],
                        "/prune/sparsity": [0.4, 0.5, 0.6],
                    },
                    "stop": {"ascending": "/prune/sparsity"},
                }
            ]
        }
    )

    name: LabelValue | None = Field(None, description="Free text.")
    spec: dict[str, JsonValue] = Field(
        description="What all children share; what they differ in may be left out.",
        json_schema_extra={LIKE: "PartialSpec"},
    )
    grid: dict[Pointer, Annotated[list[JsonValue], Field(min_length=1, max_length=MAX_CHILDREN)]] | None = Field(
        None,
        min_length=1,
        max_length=8,
        description="Pointer -> values: a child for each combination, the last pointer changing fastest.",
    )
    list_: Annotated[list[Changes], Field(min_length=1, max_length=MAX_CHILDREN)] | None = Field(
        None, alias="list", description="A child for each entry: what it changes, pointer -> value."
    )
    stop: StopRule | None = None
    retention: SweepRetention | None = Field(
        None, description="What stays of the children's results. Default: as the tenant has it, else all."
    )

    @model_validator(mode="after")
    def _grid_or_list(self) -> SweepSubmit:
        if (self.grid is None) == (self.list_ is None):
            raise PydanticCustomError("grid_or_list", "give either `grid` or `list`")
        return self


Changes = Annotated[dict[Pointer, JsonValue], Field(min_length=1, max_length=8)]
SweepSubmit.model_rebuild()


class PlannedChild(Read):
    number: int
    values: dict[str, JsonValue]
    spec_digest: str
    parameters_after: int | None = Field(description="null, as the two below, where the job finds them.")
    zeros_after: int | None
    bytes_after: int | None
    peak_memory_bytes: int
    elapsed_s: float
    warnings: list[str]


class SweepPlan(Read):
    """The plan of a sweep, without layers, which a dry run of a job shows. Nothing is run."""

    children: list[PlannedChild]
    peak_memory_bytes: int = Field(description="Of each process of the largest child.")
    elapsed_s: float = Field(description="Of all children, one after another, on two CPU cores. An order of magnitude.")
    price: Price | None = Field(description="Of all children; null where a dry run of one of them has none.")


class SweepChildRead(Read):
    number: int = Field(description="From 0, in the order of the grid or the list, in which they run too.")
    values: dict[str, JsonValue] = Field(description="What it differs in, pointer -> value.")
    job_id: str | None = Field(description="null once the job has been deleted.")
    status: JobStatus | Literal["deleted"]
    verdict: Verdict | None
    metrics: dict[str, MetricSummary] | None
    error: JobFailure | None
    stopped_by: int | None = Field(description="The child whose end made the stop rule cancel this one.")


class SweepLinks(Read):
    self: str
    jobs: str
    pareto: str


class SweepSummary(Read):
    """A sweep without its children."""

    id: str = Field(examples=[SWEEP_ID])
    name: str | None
    status: Literal["running", "completed"] = Field(
        description="`completed` once no child is queued or running, however they ended."
    )
    counts: dict[str, int] = Field(description="Children by status.", examples=[{"succeeded": 5, "failed": 1}])
    parameters: list[str] = Field(description="What the children differ in: JSON pointers into the spec.")
    stop: StopRule | None
    retention: SweepRetention | None = Field(description="As it was asked for.")
    created_at: AwareDatetime
    links: SweepLinks


class SweepRead(SweepSummary):
    """A sweep. The ETag names this document exactly."""

    children: list[SweepChildRead]


class SweepPage(Read):
    data: list[SweepSummary]
    next_cursor: str | None
    has_more: bool
    total: int | None = Field(
        description=f"With `count=true`: how many sweeps there are; {TOTAL_MOST} is that many or more. Else null."
    )


class Axis(Read):
    """A measurement that the children are compared by."""

    metric: str
    unit: str
    higher_is_better: bool
    dense: float | None = Field(description="The dense model's value; null of the sparsity.")
    tolerance: float = Field(
        description="Values no further apart count as equal. Of exact counts, which are rounded to whole weights of a "
        "row, channels or heads; 0 of what has an error of its own. A share of the value, but of fractions absolute."
    )


class ParetoPoint(Read):
    number: int
    job_id: str
    values: dict[str, JsonValue]
    methods: dict[str, str] = Field(description="Stage -> method, of the stages that decide the weights.")
    quality: float
    cost: float
    quality_stderr: float | None
    cost_stderr: float | None
    verdict: Verdict | None
    on_front: bool = Field(
        description="Its gates do not fail, and of all children of which that is so none is as good in both and better "
        "in one, within the tolerance of the axes."
    )


class LeftOut(Read):
    number: int
    reason: str


class Pareto(Read):
    """Quality against cost over the children that have succeeded."""

    sweep_id: str
    quality: Axis | None = Field(description="null until a child has succeeded.")
    cost: Axis | None
    points: list[ParetoPoint]
    left_out: list[LeftOut]
    metrics: list[str] = Field(description="What all succeeded children measured: what the axes may be.")
