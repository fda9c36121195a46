"""Types of query parameters: text by one exact grammar each. What is close to a number or a date is refused."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any

from pydantic import AwareDatetime, BeforeValidator
from pydantic_core import PydanticCustomError


def _matching(pattern: str, code: str, message: str) -> BeforeValidator:
    grammar = re.compile(pattern)

    def check(value: Any) -> Any:
        if isinstance(value, str) and not grammar.fullmatch(value):
            raise PydanticCustomError(code, message)
        return value

    return BeforeValidator(check)


WholeNumber = Annotated[int, _matching(r"-?[0-9]{1,18}", "int_parsing", "this must be a whole number, in digits")]
Flag = Annotated[bool, _matching(r"true|false", "bool_parsing", "this must be `true` or `false`")]
Instant = Annotated[
    AwareDatetime,
    _matching(
        r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})",
        "datetime_parsing",
        "this must be a time with its offset, such as 2026-11-22T00:00:00Z",
    ),
]
"""ISO 8601 with its offset; a `+` in a query has to be sent as `%2B`."""


def milliseconds(at: datetime | None) -> int | None:
    """Since the epoch, as the database has its times."""
    return None if at is None else int(at.timestamp() * 1000)
