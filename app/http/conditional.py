"""Conditional requests, ranges and waits: RFC 9110 sections 13 and 14, RFC 7240."""

from __future__ import annotations

import re

from app.errors import PreconditionFailed, RangeNotSatisfiable

PRIVATE = {"Cache-Control": "private, no-cache", "Vary": "Authorization, Cookie"}
"""Headers of what one tenant may see and keep, if it asks each time whether that still holds."""
PAGE_HEADERS = {
    "Cache-Control": "private, no-cache",
    "Vary": "Authorization, Cookie, Accept",
    # A page brings its styles and plots along and needs nothing else.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:",
    "X-Content-Type-Options": "nosniff",
}
"""Of what can be had as JSON and as a page for people."""
LONGEST_WAIT_S = 60


def matches(header: str | None, etag: str) -> bool:
    """Whether an If-None-Match or If-Match list names the strong `etag`; `*` names any."""
    if header is None:
        return False
    return header.strip() == "*" or etag in re.findall(r'(?<![/\w])"[^"]*"', header)


def check_if_match(header: str | None, etag: str) -> None:
    """Raises PreconditionFailed if the header is there and does not name the ETag."""
    if header is not None and not matches(header, etag):
        raise PreconditionFailed(
            "The resource has changed since you read it: read it again and repeat the change.", headers={"ETag": etag}
        )


def wait_preference(header: str | None) -> int | None:
    """Seconds of a `Prefer: wait=N`, at most LONGEST_WAIT_S; None where there is none that can be read."""
    found = re.search(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,9})\"?\s*(?:[,;]|$)", header or "", re.IGNORECASE)
    return min(int(found[1]), LONGEST_WAIT_S) if found else None


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Bytes [start, end) of a single range; None asks for the whole.

    Several ranges, other units and malformed headers are ignored, as RFC 9110 section 14.2 allows. Raises
    RangeNotSatisfiable where the range begins past the end.
    """
    found = re.fullmatch(r"bytes=(?:(\d{1,18})-(\d{1,18})?|-(\d{1,18}))", (header or "").replace(" ", ""))
    if not found:
        return None
    first, last, suffix = found.groups()
    if suffix is not None:
        start, end = max(size - int(suffix), 0), size
    else:
        start, end = int(first), size if last is None else min(int(last) + 1, size)
        if last is not None and int(last) < start:
            return None
    if start >= size or start == end:
        raise RangeNotSatisfiable(
            f"The file has {size} bytes, and the range lies behind them.", headers={"Content-Range": f"bytes */{size}"}
        )
    return start, end
