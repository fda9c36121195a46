"""Requests and responses about publications, as OpenAPI shows them."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

PUBLICATION_ID = "pub_01a201bb6ce13078a5210ce45142be09"
"""For examples."""
PublicationState = Literal["waiting", "pending", "running", "published", "withheld", "failed"]


class Read(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_serialization_defaults_required=True)


class PublicationProgress(Read):
    done: int = Field(description="Bytes that are there.")
    total: int


class PublicationResult(Read):
    location: str = Field(examples=["https://huggingface.co/acme/bookworm-half"])
    revision: str = Field(description="A commit, a version or a digest: of what is there since.")
    changed: bool = Field(description="false: all of it was there already.")


class PublicationFailure(Read):
    code: str = Field(description="Stable: what clients switch on.", examples=["publish_refused"])
    message: str
    hint: str
    retryable: bool


class PublicationRead(Read):
    """A place that a job's result is brought to."""

    id: str = Field(examples=[PUBLICATION_ID])
    to: str
    credentials: str
    gates: Literal["pass", "any"]
    params: dict[str, JsonValue] = Field(description="The publisher's own, as asked for.", examples=[{"path": "v3"}])
    state: PublicationState = Field(
        description="waiting for the job's success, pending, running, published, withheld by the gates, or failed."
    )
    tries: int
    progress: PublicationProgress | None
    result: PublicationResult | None
    error: PublicationFailure | None = Field(description="Of the last try that failed.")
    asked_by: str | None = Field(description="Name of the key.")
    created_at: AwareDatetime
    due_at: AwareDatetime | None = Field(description="When it is tried next, while it is pending.")
    done_at: AwareDatetime | None


class PublicationList(Read):
    data: list[PublicationRead]


class CredentialsRead(Read):
    """A place that may be published to."""

    name: str
    to: str


class CredentialsList(Read):
    data: list[CredentialsRead]
