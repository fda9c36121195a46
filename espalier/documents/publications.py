"""Places that a job's result is brought to."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from espalier.documents.base import Document

UNDER_WAY = frozenset({"pending", "running"})


class PublicationProgress(Document):
    """Bytes that are there, of all."""

    done: int
    total: int


class PublicationResult(Document):
    """Where it is: a URL, the revision there, and whether anything there had to be changed."""

    location: str
    revision: str
    changed: bool


class PublicationFailure(Document):
    """Why the last try failed. `code` is stable, `hint` says what to change."""

    code: str
    message: str
    hint: str
    retryable: bool


class Publication(Document):
    """A place that a job's result is brought to, as it was when the service last said so."""

    id: str
    to: str
    credentials: str
    gates: str
    params: dict[str, Any]
    state: str
    """waiting (for the job), pending, running, published, withheld (by the gates) or failed."""
    tries: int
    progress: PublicationProgress | None = None
    result: PublicationResult | None = None
    error: PublicationFailure | None = None
    asked_by: str | None = None
    created_at: datetime
    due_at: datetime | None = None
    done_at: datetime | None = None


class Credentials(Document):
    """A name of the operator's that results may be published under, and the kind of place it is for."""

    name: str
    to: str
