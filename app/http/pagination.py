"""Cursors: where the last page ended, signed, and bound to the filters it was made with."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from urllib.parse import urlencode

import orjson
from starlette.requests import Request

from app.errors import InvalidCursor

MAC_BYTES = 16


def encode_cursor(secret: bytes, filters: str, *position: int | str) -> str:
    """`filters` is any text that is the same whenever filters and order are; `position` is what the last entry has of
    the columns that the list is ordered by."""
    payload = orjson.dumps([_digest(filters), *position])
    return base64.urlsafe_b64encode(_mac(secret, payload) + payload).decode()


def decode_cursor(secret: bytes, filters: str, cursor: str) -> tuple[int | str, ...]:
    """The position of the last entry of the page before. Raises InvalidCursor."""
    try:
        raw = base64.b64decode(cursor, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    mac, payload = raw[:MAC_BYTES], raw[MAC_BYTES:]
    verbatim = base64.urlsafe_b64encode(raw).decode() == cursor  # several texts decode to the same bytes
    if not verbatim or not hmac.compare_digest(mac, _mac(secret, payload)):
        raise InvalidCursor("This is no cursor of this service: take `next_cursor` as it is, or begin without one.")
    digest, *position = orjson.loads(payload)
    if digest != _digest(filters):
        raise InvalidCursor(
            "The cursor belongs to a list with other filters or another order: keep them, or begin without a cursor.",
            code="cursor_mismatch",
        )
    return tuple(position)


def next_link(request: Request, cursor: str | None) -> dict[str, str]:
    """The Link header to the next page, with the filters of this one; none where there is no cursor."""
    if cursor is None:
        return {}
    kept = [(key, value) for key, value in request.query_params.multi_items() if key != "cursor"]
    return {"Link": f'<{request.scope["path"]}?{urlencode([*kept, ("cursor", cursor)])}>; rel="next"'}


def _mac(secret: bytes, payload: bytes) -> bytes:
    return hmac.digest(secret, b"cursor:" + payload, hashlib.sha256)[:MAC_BYTES]


def _digest(filters: str) -> str:
    return hashlib.sha256(filters.encode()).hexdigest()[:16]
