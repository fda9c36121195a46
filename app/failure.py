"""Why an attempt failed, as the job shows it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

LONGEST = 2000
"""Characters: an error may quote a model's, a table's or a library's text of any length."""


@dataclass(frozen=True)
class Failure:
    code: str
    """Stable; clients switch on it."""
    message: str
    hint: str
    """The remedy, or the next step of the service."""
    retryable: bool
    stage: str | None = None
    field: str | None = None
    """JSON pointer into the spec, if the cause is there."""

    def __post_init__(self) -> None:
        for name in ("message", "hint"):
            text = getattr(self, name)
            if (more := len(text) - LONGEST) > 0:
                object.__setattr__(self, name, f"{text[:LONGEST]}… ({more:,} characters more)")

    def as_json(self, attempt: int) -> dict[str, Any]:
        return {**asdict(self), "attempt": attempt}
