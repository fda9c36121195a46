"""Why an attempt failed, as the job shows it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Failure:
    code: str
    """Stable; clients switch on it."""
    message: str
    hint: str
    """What to change, or what happens next."""
    retryable: bool
    stage: str | None = None
    field: str | None = None
    """JSON pointer into the spec, where the cause lies there."""

    def as_json(self, attempt: int) -> dict[str, Any]:
        return {**asdict(self), "attempt": attempt}
