"""The method registry, rendered. No list of methods is kept by hand."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from workers.engine.registry import STAGES, Method, Stat, methods


class MethodRead(BaseModel):
    name: str = Field(description="What `method` says in a spec.", examples=["wanda"])
    summary: str
    paper: str
    needs: list[str] = Field(description="What is gathered from calibration text for it.")
    units: list[str] = Field(description="What is scored or removed as one.", examples=[["weight"]])
    patterns: list[str] = Field(description="Sparsity patterns; `N:M` keeps N of every M.")
    score: Literal["required", "optional", "unused"] | None = Field(
        description="Pruners: whether the spec must have a `score`, may have one, or must not; null for other stages."
    )
    updates_weights: bool | None = Field(
        description="Pruners: whether weights that stay change too, which rules out `refine`; null for other stages."
    )
    parameters: dict[str, Any] = Field(description="JSON Schema of the method's fields in a spec.")


class StageRead(BaseModel):
    stage: str = Field(description="The spec's field.", examples=["score"])
    methods: list[MethodRead]


class Capabilities(BaseModel):
    """What this service can do to a model."""

    stages: list[StageRead] = Field(description="In the order in which they run.")


def capabilities() -> Capabilities:
    """Every method of this installation."""
    return Capabilities(
        stages=[StageRead(stage=stage, methods=[_method(m) for m in methods(stage)]) for stage in STAGES]
    )


def _method(method: Method) -> MethodRead:
    return MethodRead(
        name=method.name,
        summary=method.summary,
        paper=method.paper,
        needs=[stat.name.lower() for stat in Stat if stat in method.needs and stat.name],
        units=list(method.units),
        patterns=list(method.patterns),
        score=method.scores if method.stage == "prune" else None,
        updates_weights=method.updates_weights if method.stage == "prune" else None,
        parameters=method.params.model_json_schema(),
    )
