"""The cookie of a session: its text, its attributes, and what a request with it must show before it changes anything.

A browser sends a cookie whoever made the page that asks. So the cookie is `SameSite=Strict`, and a request that could
change something needs two things more: it comes from a page of this service, as the browser itself says, and it has the
header X-CSRF-Token, whose value only such a page can read.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from app.errors import Forbidden

NAME, SECURE_NAME = "espalier_session", "__Host-espalier_session"
"""Browsers take the second over https only, and from nobody but this very host."""
CSRF_HEADER = "x-csrf-token"
SAFE = frozenset(("GET", "HEAD", "OPTIONS"))


def new_token() -> str:
    return secrets.token_urlsafe(32)


def token_of(request: Request) -> str | None:
    """The text of the request's session; None where it has no cookie that could be one. Over https only the cookie
    that no other host of the domain can set: it might sign the browser in as somebody else."""
    cookies = request.cookies
    found = cookies.get(SECURE_NAME) or (None if _is_surely_https(request) else cookies.get(NAME))
    return found if found and re.fullmatch(r"[A-Za-z0-9_-]{43}", found) else None


def hash_token(token: str, secret: bytes) -> str:
    """HMAC-SHA256, hex: all of it that is stored."""
    return hmac.digest(secret, b"session:" + token.encode(), hashlib.sha256).hex()


def csrf_token(token: str, secret: bytes) -> str:
    return hmac.digest(secret, b"csrf:" + token.encode(), hashlib.sha256).hex()


def give(request: Request, response: Response, token: str, max_age_s: int) -> None:
    """`Secure` wherever the browser says that it speaks https, with this service or with a proxy before it."""
    secure = _is_https(request)
    response.set_cookie(
        SECURE_NAME if secure else NAME,
        token,
        max_age=max_age_s,
        path="/",
        secure=secure,
        httponly=True,
        samesite="strict",
    )


def take_back(response: Response) -> None:
    for name, secure in ((NAME, False), (SECURE_NAME, True)):
        response.delete_cookie(name, path="/", secure=secure, httponly=True, samesite="strict")


def check_may_change(request: Request, token: str, secret: bytes) -> None:
    """Raises Forbidden where the method is not safe and the request might be another site's doing."""
    if request.method in SAFE:
        return
    if not _from_here(request):
        raise Forbidden(
            "A page of another site sent this with the cookie of a session. Send an API key instead.",
            code="cross_origin",
        )
    given = request.headers.get(CSRF_HEADER, "")
    if not hmac.compare_digest(given.encode(), csrf_token(token, secret).encode()):
        raise Forbidden(
            "With the cookie of a session this needs the header `X-CSRF-Token`: the `csrf_token` of GET /v1/session.",
            code="csrf_token",
        )


def _from_here(request: Request) -> bool:
    """As the browser says: by Sec-Fetch-Site, or where that is missing by Origin. Programs send neither."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc.lower() == request.headers.get("host", "").lower()


def _is_https(request: Request) -> bool:
    """A browser sends Origin with every request that may change something, whatever proxies are on the way."""
    return request.scope["scheme"] == "https" or request.headers.get("origin", "").startswith("https://")


def _is_surely_https(request: Request) -> bool:
    """Not so where the Origin may be another site's."""
    return request.scope["scheme"] == "https" or (_is_https(request) and _from_here(request))
