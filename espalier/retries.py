"""Which requests are sent again, and when.

A request is *repeatable* if doing it twice is as doing it once: GET, HEAD, DELETE and PATCH, whatever carries an
Idempotency-Key, and what the caller says is. Others are sent again only where it is certain that nothing was done: no
connection was made, or the answer is 429.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2

from espalier.errors import APIError, Unreachable

LONGEST_PAUSE_S = 20.0
"""A longer Retry-After is the caller's to decide on: the error is raised at once, with `retry_after_s`."""
FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 8.0


def is_repeatable(method: str, headers: Mapping[str, str]) -> bool:
    """Whether doing it twice is as doing it once."""
    return method in ("GET", "HEAD", "DELETE", "PATCH") or "Idempotency-Key" in headers


def after_error(error: httpx2.RequestError, *, repeatable: bool) -> bool:
    """Whether a request without an answer may be sent again."""
    unsent = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)
    return unsent or repeatable


def after_answer(response: httpx2.Response, *, repeatable: bool) -> bool:
    """Whether a request with this answer may be sent again."""
    known = response.status_code == 429 or (repeatable and response.status_code in (502, 503, 504))
    return known and (retry_after_s(response) or 0) <= LONGEST_PAUSE_S


def is_last(error: APIError | Unreachable, failures: int, most: int) -> bool:
    """Whether what is read as it comes is given up after this failure, of `failures` in a row."""
    return failures >= most or (_asked_s(error) or 0) > LONGEST_PAUSE_S


def pause_after_s(error: APIError | Unreachable, failures: int) -> float:
    """Seconds to wait before what is read as it comes is gone on with."""
    return pause_s(failures, _asked_s(error))


def retry_after_s(response: httpx2.Response) -> float | None:
    """Seconds that Retry-After asks for, as a number or a date; None without, or where it is neither."""
    text = response.headers.get("Retry-After", "")
    if text.isdecimal():
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max((at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds(), 0.0)


def pause_s(failures: int, asked_s: float | None = None) -> float:
    """Seconds to wait after `failures` failures in a row: what the service asked for, or else 0.5, 1, 2, 4, 8, each
    less up to a quarter by chance, so that many clients do not come back at once."""
    if asked_s is not None:
        return asked_s
    return min(FIRST_PAUSE_S * 2.0 ** (failures - 1), LAST_PAUSE_S) * random.uniform(0.75, 1.0)


def _asked_s(error: APIError | Unreachable) -> float | None:
    return error.retry_after_s if isinstance(error, APIError) else None
