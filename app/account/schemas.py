"""The holder of a key, as the service tells it: OpenAPI shows this."""

from __future__ import annotations

from pydantic import AwareDatetime, Field

from app.jobs.schemas import Read
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


class Me(Read):
    """The key of the request, and whose it is."""

    tenant: TenantRead
    key: KeyRead
    limits: Limits
