"""The capabilities of a service: those of its engine, and the publishers, which need the libraries of a service."""

from __future__ import annotations

from pydantic import BaseModel, Field, JsonValue

from app.capabilities.schemas import EngineCapabilities, capabilities
from app.publications.registry import publishers


class PublisherRead(BaseModel):
    """A kind of place that results can be published to, through credentials of the operator's."""

    name: str = Field(description="What `to` says in `publish`.", examples=["s3"])
    summary: str
    parameters: dict[str, JsonValue] = Field(description="JSON Schema of an entry of `publish`.")


class Capabilities(EngineCapabilities):
    """Stages, methods and settings that this service offers."""

    publishers: list[PublisherRead] = Field(description="Kinds of places that a job's `publish` may name.")


def of_service() -> Capabilities:
    return Capabilities(
        **dict(capabilities()),
        publishers=[
            PublisherRead(name=each.name, summary=each.params.__doc__ or "", parameters=each.params.model_json_schema())
            for each in publishers().values()
        ],
    )
