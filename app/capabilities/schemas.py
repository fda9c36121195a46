"""The method registry, rendered. No list of methods is kept by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, Field, JsonValue

from workers.engine.contracts.params import EDITS, STAGES, Stat
from workers.engine.method_packages import offered
from workers.engine.registry import Method, methods
from workers.engine.spec import CompressionSpec


class MethodRead(BaseModel):
    name: str = Field(description="What `method` says in a spec.", examples=["wanda"])
    summary: str
    paper: str
    needs: list[str] = Field(description="What is gathered from calibration text for it, with its default parameters.")
    units: list[str] = Field(description="What is scored or removed as one.", examples=[["weight"]])
    patterns: list[str] = Field(description="Sparsity patterns; `N:M` keeps N of every M.")
    score: Literal["required", "optional", "unused"] | None = Field(
        description="Pruners and growers: whether the spec must have a `score`, may have one, or must not; null for "
        "other stages."
    )
    updates_weights: bool | None = Field(
        description="Pruners: whether weights that stay change too, which rules out `refine`; null for other stages."
    )
    parameters: dict[str, JsonValue] = Field(description="JSON Schema of the method's fields in a spec.")
    origin: str | None = Field(
        description="Package and version that the method comes from; null for espalier's own.",
        examples=["espalier-norms 0.1.0"],
    )


class StageRead(BaseModel):
    stage: str = Field(description="The spec's field.", examples=["score"])
    methods: list[MethodRead]


class FieldRead(BaseModel):
    """A field of the spec that is no stage."""

    name: str = Field(examples=["calibrate"])
    summary: str
    parameters: dict[str, JsonValue] = Field(description="JSON Schema of an object with this field as its only one.")


class RefusedRead(BaseModel):
    """A method of an installed package that the operator has not allowed."""

    stage: str
    name: str
    origin: str = Field(description="Package and version.", examples=["espalier-norms 0.1.0"])


class EngineCapabilities(BaseModel):
    """Stages, methods and settings of this installation, which a command of the client alone can tell."""

    stages: list[StageRead] = Field(description="In the order in which they run.")
    fields: list[FieldRead] = Field(description="The spec's other fields: model, texts, gates, precision, files, seed.")
    refused: list[RefusedRead] = Field(
        description="Methods of installed packages that are not used until the operator allows the package."
    )


def capabilities() -> EngineCapabilities:
    """Every method of this installation."""
    return EngineCapabilities(
        stages=[StageRead(stage=stage, methods=[_method(m) for m in methods(stage)]) for stage in STAGES],
        fields=_fields(),
        refused=[
            RefusedRead(stage=one.stage, name=one.name, origin=one.origin) for one in offered() if not one.allowed
        ],
    )


def _fields() -> list[FieldRead]:
    schema = CompressionSpec.model_json_schema()
    return [
        FieldRead(
            name=name,
            summary=field.get("description") or schema["$defs"][field["$ref"].rpartition("/")[2]]["description"],
            parameters=_alone(schema, name),
        )
        for name, field in schema["properties"].items()
        if name not in STAGES
    ]


def _alone(schema: dict[str, Any], name: str) -> dict[str, Any]:
    """The schema of an object that has one of the properties, with what that refers to."""
    required = [name] if name in schema["required"] else []
    alone = {"type": "object", "properties": {name: schema["properties"][name]}, "required": required}
    used, found = set[str](), set(_references(alone))
    while found - used:
        used |= found
        found = {inner for outer in used for inner in _references(schema["$defs"][outer])}
    return alone | {"$defs": {each: schema["$defs"][each] for each in sorted(used)}}


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"].rpartition("/")[2]
        node = list(node.values())
    if isinstance(node, list):
        for inner in node:
            yield from _references(inner)


def _method(method: Method) -> MethodRead:
    needs = method.needs & ~method.defaults.waives if method.stage in ("score", "allocate") else method.needs
    return MethodRead(
        name=method.name,
        summary=method.summary,
        paper=method.paper,
        needs=[stat.name.lower() for stat in Stat if stat in needs and stat.name],
        units=list(method.units),
        patterns=list(method.patterns),
        score=method.scores if method.stage in EDITS else None,
        updates_weights=method.updates_weights if method.stage == "prune" else None,
        parameters=method.params.model_json_schema(),
        origin=method.origin or None,
    )
