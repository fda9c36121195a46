"""Models that the service can see, as OpenAPI shows them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.jobs.schemas import Read
from app.jobs.views import JOB_ID
from workers.engine.contracts.refs import ModelRef
from workers.engine.spec import CompressionSpec


class PartialSpec(CompressionSpec):
    """A spec that may lack fields."""

    model: ModelRef = Field(None, description="Which model to compress.")  # type: ignore[assignment]


class ModelSummary(Read):
    """A model: what it is, and what can be done to it."""

    id: str = Field(
        description="Of a local model its folder, which `model.id` of a spec names; of a result its job.",
        examples=["bookworm-7m", JOB_ID],
    )
    source: Literal["local", "job"]
    model_type: str | None = Field(
        description="As its config says; null where that cannot be read.", examples=["llama"]
    )
    family: str | None = Field(
        description="The layout that names its parts; null where none does, and of results.", examples=["Llama"]
    )
    parameters: int | None
    blocks: int | None = Field(description="null of results.")
    context_length: int | None = Field(description="Tokens; null of results.")
    weight_bytes: int | None
    compressible: bool
    methods: list[str] = Field(description="Pruners and growers that fit it.", examples=[["depth", "mask"]])
    code: str | None = Field(
        description="Why nothing can be done to it, as a problem's code; null where something can."
    )
    reason: str | None = Field(description="The same in words, with the remedy.")


class ModelPage(Read):
    data: list[ModelSummary]
    next_cursor: str | None
    has_more: bool


class AbilityRead(Read):
    """Whether a method that edits models fits this one."""

    stage: Literal["prune", "grow"]
    method: str
    fits: bool
    spec: PartialSpec | None = Field(
        description="Beside the model, the fields of a spec that the planner accepts; its text may not be there.",
        examples=[{"score": {"method": "magnitude"}, "prune": {"method": "mask", "sparsity": 0.5}}],
    )
    code: str | None
    reason: str | None = Field(description="The planner's refusal, where it does not fit.")


class ModelRead(ModelSummary):
    """A model with the planner's answer for each pruner and grower."""

    abilities: list[AbilityRead]
