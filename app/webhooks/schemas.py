"""Requests and responses of the webhook endpoints, as OpenAPI shows them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, ConfigDict, Field

from app.jobs.schemas import LabelKey, LabelValue, Read, Request

WEBHOOK_ID = "whk_01a201bb6ce13078a5210ce45142be09"
EventType = Literal[
    "job.queued",
    "job.running",
    "job.pausing",
    "job.paused",
    "job.cancelling",
    "job.succeeded",
    "job.failed",
    "job.cancelled",
    "publication.published",
    "publication.failed",
]
Url = Annotated[
    str, Field(min_length=8, max_length=2000, pattern=r"^[!-~]+$", examples=["https://example.org/espalier"])
]
Events = Annotated[list[EventType], Field(max_length=20, description="Which events it is told of; empty for all.")]
Labels = Annotated[
    dict[LabelKey, LabelValue], Field(max_length=10, description="Only jobs that have all of these labels.")
]


class WebhookSubmit(Request):
    """A webhook to make."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "url": "https://example.org/espalier",
                    "events": ["job.succeeded", "job.failed"],
                    "labels": {"team": "search"},
                }
            ]
        }
    )

    url: Url
    events: Events = Field(default_factory=list)
    labels: Labels = Field(default_factory=dict)


class WebhookPatch(Request):
    """Changes to a webhook; what is left out stays."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"enabled": True}]})

    url: Url | None = None
    events: Events | None = None
    labels: Labels | None = None
    enabled: bool | None = Field(
        None, description="false: it is told of nothing more. true: again, and of what it has not got yet."
    )


class RotateRequest(Request):
    """How to rotate a secret."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"keep_hours": 24}]})

    keep_hours: float = Field(24, ge=0, le=168, description="How long the secret before signs beside the new one.")


class WebhookRead(Read):
    id: str = Field(examples=[WEBHOOK_ID])
    url: str
    events: list[str]
    labels: dict[str, str]
    enabled: bool
    disabled_because: str | None
    previous_secret_until: AwareDatetime | None = Field(description="Until then the secret before signs too.")
    created_at: AwareDatetime


class WebhookWithSecret(WebhookRead):
    """A webhook and the secret that signs its messages."""

    secret: str = Field(description="For a library of standardwebhooks.com.", examples=["whsec_…"])


class WebhookList(Read):
    data: list[WebhookRead]


class TryRead(Read):
    at: AwareDatetime
    status: int | None = Field(description="The receiver's; null where it gave no answer.")
    error: str | None
    elapsed_s: float


class DeliveryRead(Read):
    """A message for a webhook."""

    id: int
    message_id: str = Field(description="The header `webhook-id`, the same whenever it is sent.")
    type: str
    job_id: str | None
    state: Literal["pending", "delivered", "failed"]
    tries: int = Field(description="Since it was made, or sent again by hand.")
    at: AwareDatetime = Field(description="When the event was.")
    due_at: AwareDatetime | None = Field(description="When it is tried next, while it is pending.")
    log: list[TryRead] = Field(description="The last 20 tries.")


class DeliveryPage(Read):
    data: list[DeliveryRead]
    next_cursor: str | None
    has_more: bool
