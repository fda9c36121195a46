"""Headers and their meaning, without an application."""

from __future__ import annotations

import pytest

from app.errors import InvalidCursor, NotAcceptable, PreconditionFailed, RangeNotSatisfiable
from app.http.conditional import byte_range, check_if_match, matches, wait_preference
from app.http.negotiation import negotiate
from app.http.pagination import decode_cursor, encode_cursor

JSON, HTML = "application/json", "text/html"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, False),
        ("", False),
        ('"5"', True),
        ('"4", "5"', True),
        ('"4","55"', False),
        ("*", True),
        ('W/"5"', False),
        ("5", False),
    ],
)
def test_if_none_match(header: str | None, expected: bool) -> None:
    assert matches(header, '"5"') is expected


def test_if_match() -> None:
    check_if_match(None, '"5"')
    check_if_match('"5"', '"5"')
    with pytest.raises(PreconditionFailed) as caught:
        check_if_match('"4"', '"5"')
    assert caught.value.headers == {"ETag": '"5"'}


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("wait=5", 5),
        ("respond-async, wait=10", 10),
        ("Wait = 7; foo", 7),
        ('wait="3"', 3),
        ("wait=0", 0),
        ("wait=3600", 60),
        ("wait=-1", None),
        ("wait=soon", None),
        ("await=5", None),
        ("return=minimal", None),
    ],
)
def test_prefer_wait(header: str | None, seconds: int | None) -> None:
    assert wait_preference(header) == seconds


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-", (0, 10)),
        ("bytes=2-5", (2, 6)),
        ("bytes= 2 - 5", (2, 6)),
        ("bytes=9-9", (9, 10)),
        ("bytes=5-99", (5, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-30", (0, 10)),
        ("bytes=5-2", None),
        ("bytes=1-2,4-5", None),
        ("bytes", None),
        ("lines=0-1", None),
    ],
)
def test_range(header: str | None, expected: tuple[int, int] | None) -> None:
    assert byte_range(header, 10) == expected


@pytest.mark.parametrize(
    ("header", "size"), [("bytes=10-", 10), ("bytes=10-12", 10), ("bytes=-0", 10), ("bytes=0-", 0)]
)
def test_range_behind_the_end(header: str, size: int) -> None:
    with pytest.raises(RangeNotSatisfiable) as caught:
        byte_range(header, size)
    assert caught.value.headers == {"Content-Range": f"bytes */{size}"}


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("text/html", HTML),
        ("text/*", HTML),
        ("text/html;q=0.9, application/json", JSON),
        ("application/json;q=0.5, TEXT/HTML", HTML),
        ("text/html, */*;q=0.8", HTML),
        ("text/html;q=0, */*", JSON),
        ("application/*;q=0.2, text/*;q=0.3", HTML),
    ],
)
def test_negotiation(accept: str | None, expected: str) -> None:
    assert negotiate(accept, [JSON, HTML]) == expected


@pytest.mark.parametrize("accept", ["application/pdf", "application/json;q=0", "text/html;q=x", "garbage"])
def test_negotiation_fails(accept: str) -> None:
    with pytest.raises(NotAcceptable) as caught:
        negotiate(accept, [JSON, HTML])
    assert caught.value.extra["allowed"] == [JSON, HTML]


def test_cursors_round_trip() -> None:
    cursor = encode_cursor(b"secret", "filters", 123, "job_x")
    assert decode_cursor(b"secret", "filters", cursor) == (123, "job_x")
    for secret, filters, code in ((b"other", "filters", "invalid_cursor"), (b"secret", "other", "cursor_mismatch")):
        with pytest.raises(InvalidCursor) as caught:
            decode_cursor(secret, filters, cursor)
        assert caught.value.code == code


def test_a_cursor_is_taken_as_it_was_given() -> None:
    cursor = encode_cursor(b"secret", "", 1, "job_xx")
    assert cursor.endswith("=")
    last = cursor.rstrip("=")[-1]
    alike = chr(ord(last) + 1)  # differs in bits that the decoder drops
    for changed in (cursor.rstrip("=")[:-1] + alike + "=" * cursor.count("="), cursor[1:], cursor + "AAAA"):
        with pytest.raises(InvalidCursor):
            decode_cursor(b"secret", "", changed)
