"""What requests carry: filters of lists, and the bodies of submissions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypedDict
from urllib.parse import quote

Query = Sequence[tuple[str, str]]
"""Names and values; a name may stand several times."""


class JobFilters(TypedDict, total=False):
    """Which jobs, in which order. None is as left out."""

    status: str | Sequence[str] | None
    """One status or several."""
    labels: Mapping[str, str] | None
    """All must match."""
    model: str | None
    """The spec's `model.id`."""
    verdict: str | None
    method: str | None
    """A method that the spec has, in any stage."""
    search: str | None
    """A part of the id, the model, a method or a label."""
    created_after: datetime | str | None
    created_before: datetime | str | None
    sort: str | None
    """created_at, updated_at, priority or model; with `-` the largest first. Default: -created_at."""


class JobOptions(TypedDict, total=False):
    """How a job is found and run. None is as left out."""

    labels: Mapping[str, str] | None
    priority: int | None
    """-100 to 100, default 0; higher runs first among the tenant's own jobs."""
    max_attempts: int | None
    """How many attempts may count before a retryable failure is final."""
    deadline_s: int | None
    """Longest run from the first start on, in seconds."""
    publish: Sequence[Mapping[str, Any]] | None
    """Where the result is brought once the gates have passed: docs/publishing.md."""
    retention: Mapping[str, Any] | None
    """What stays of its result: `{"keep": "all"}`, or `{"keep": "report", "days": 30}`."""


def job_filters(filters: JobFilters) -> list[tuple[str, str]]:
    """The query of a list of jobs."""
    found = {name: value for name, value in filters.items() if value is not None}
    labels: Any = found.pop("labels", {})
    return [("label", f"{key}:{value}") for key, value in labels.items()] + [
        (name, _text(value)) for name, value in found.items()
    ]


def segment(text: str) -> str:
    """A name as one part of a path, whatever is in it: `..` is no other path, and `?` no query."""
    return quote(text, safe="").replace(".", "%2E")


def given(**parameters: Any) -> list[tuple[str, str]]:
    """The query of those that are not None."""
    return [(name, _text(value)) for name, value in parameters.items() if value is not None]


def submission(spec: Mapping[str, Any], options: JobOptions) -> dict[str, Any]:
    """The body of POST /v1/jobs."""
    return {"spec": spec, **{name: value for name, value in options.items() if value is not None}}


def _text(value: Any) -> str:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone: give it one, such as datetime.UTC")
        return value.isoformat()
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else ",".join(value) if isinstance(value, Sequence) else str(value)
