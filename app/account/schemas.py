"""The holder of a key, as the service tells it: OpenAPI shows this."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, ConfigDict, Field

from app.jobs.schemas import Price, Read, Request, Retention
from app.keys.scopes import Scope


class TenantRead(Read):
    id: str = Field(examples=["ten_01a201bb6ce13078a5210ce45142be09"])
    name: str = Field(examples=["research"])


class KeyRead(Read):
    id: str = Field(examples=["key_01a201bb6ce13078a5210ce45142be09"])
    name: str = Field(examples=["ci"])
    scopes: list[Scope]
    created_at: AwareDatetime
    expires_at: AwareDatetime | None


class Limits(Read):
    """Bounds of what a request may ask for."""

    max_body_bytes: int
    max_attempts: int = Field(description="Most attempts of a job.")
    deadline_s: int = Field(description="Longest run of a job, in seconds.")
    keep_days: int | None = Field(
        description="Days after a job's end for which the files of its result are kept at most; null: no bound."
    )


class Quotas(Read):
    """Bounds of what a tenant may use; null where there is none."""

    queued: int | None = Field(description="Jobs that are queued or paused. More are a 429 `quota_reached`.")
    running: int | None = Field(description="Jobs at once. Others wait in the queue.")
    stored_bytes: int | None = Field(description="Of results. Once it is reached, new jobs are a 403 `quota_exceeded`.")
    device_seconds: int | None = Field(
        description="Of a calendar month, UTC. Once it is reached, new jobs are a 403 and queued ones wait."
    )
    requests: int | None = Field(description="A minute, of each API process. More are a 429 `rate_limited`.")


class Usage(Read):
    """Amounts that a tenant uses of its quotas, or would."""

    queued: int
    running: int
    stored_bytes: int = Field(description="Of the files of results; equal files of several jobs count once.")
    removed_bytes: int = Field(description="Of files that retention policies have taken from jobs, since the first.")
    device_seconds: float = Field(description="Of this month: time of attempts times the devices that each held.")
    prices: list[Price] = Field(
        description="Of these device-seconds, by the prices at the start of each attempt; of each currency one."
    )
    resets_at: AwareDatetime = Field(description="When the next month begins.")


class TenantRetention(Read):
    """The policy of jobs that do not say."""

    keep: Literal["all", "report"]
    days: int


class Me(Read):
    """The key of the request, and whose it is."""

    tenant: TenantRead
    key: KeyRead
    limits: Limits
    quotas: Quotas
    retention: TenantRetention
    usage: Usage


class TenantDetail(TenantRead):
    """A tenant as an operator sees it."""

    created_at: AwareDatetime
    weight: int = Field(description="Its share of the workers, against the weights of the others that wait.")
    quotas: Quotas
    retention: TenantRetention
    usage: Usage


class TenantList(Read):
    data: list[TenantDetail]


Bound = Annotated[int, Field(ge=0, le=2**53)] | None


class QuotasPatch(Request):
    """Quotas to change; null takes one away, those that are left out stay."""

    queued: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    running: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    stored_bytes: Bound = None
    device_seconds: Bound = None
    requests: Annotated[int, Field(ge=1, le=10**6)] | None = None


class TenantPatch(Request):
    """Changes to a tenant."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"weight": 2, "quotas": {"queued": 500, "running": None}}]}
    )

    weight: int | None = Field(None, ge=1, le=1000, description="null or left out: as it is.")
    quotas: QuotasPatch = QuotasPatch()
    retention: Retention | None = Field(
        None, description="For jobs submitted from now on that do not say; null or left out: as it is."
    )


class KeyDetail(KeyRead):
    """A key as an operator sees it."""

    tenant: TenantRead
    revoked_at: AwareDatetime | None
    last_used_at: AwareDatetime | None = Field(description="To the minute.")


class KeyList(Read):
    data: list[KeyDetail]


Name = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,100}$")]


class KeySubmit(Request):
    """A key to make."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"tenant": "research", "name": "ci", "scopes": ["jobs:read", "jobs:write"]}]}
    )

    tenant: Name = Field(description="Whose it is, by name; a tenant that is not there yet is made.")
    name: Name = Field(description="For people: where it is used.")
    scopes: list[Scope] = Field(min_length=1, description="What it may do.")
    expires_days: int | None = Field(None, ge=1, le=3650, description="Days until it ends; null: never.")


class KeyWithText(KeyDetail):
    text: str = Field(description="What goes behind `Bearer`. It is shown this once.")
