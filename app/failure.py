"""Why an attempt failed, as the job shows it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

MESSAGE_CHARACTERS = 2000
"""An error may quote a model's or a library's text of any length."""


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

    def __post_init__(self) -> None:
        more = len(self.message) - MESSAGE_CHARACTERS
        if more > 0:
            cut = f"{self.message[:MESSAGE_CHARACTERS]}… ({more:,} characters more)"
            object.__setattr__(self, "message", cut)

    def as_json(self, attempt: int) -> dict[str, Any]:
        return {**asdict(self), "attempt": attempt}
