"""Sessions over HTTP: sign in with an API key, look, sign out. A browser's part; programs send the key itself."""

from __future__ import annotations

from typing import Annotated

import orjson
from fastapi import APIRouter, Depends
from pydantic import AwareDatetime, Field
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from app.access import Principal, Requires
from app.errors import NotFound, Unauthenticated
from app.http.problems import responses
from app.http.route import StrictRoute
from app.jobs.schemas import Read
from app.jobs.views import iso
from app.services import ServicesDep
from app.sessions import cookie, repository, service

router = APIRouter(prefix="/v1/session", tags=["sessions"], route_class=StrictRoute)
NO_STORE = {"Cache-Control": "no-store"}
Anybody = Annotated[Principal, Depends(Requires(None))]


class SessionRead(Read):
    """The session of a browser. It may do what its key may, and ends with it."""

    expires_at: AwareDatetime
    csrf_token: str = Field(description="Value of the header X-CSRF-Token, which whatever changes something needs.")


@router.post("", operation_id="sessions_create", status_code=201, response_model=SessionRead, responses=responses())
def create(request: Request, principal: Anybody, has: ServicesDep) -> Response:
    """Sign in: an API key in `Authorization` gets a cookie that stands for it. A session of before ends."""
    if principal.session:
        raise Unauthenticated("A session begins with an API key: send it as `Authorization: Bearer espk_…`.")
    token, before = cookie.new_token(), cookie.token_of(request)

    def begin(session: Session) -> int:
        if before is not None:
            service.end(session, cookie.hash_token(before, has.secret))
        begun = service.begin(
            session,
            key_id=principal.key_id,
            session_hash=cookie.hash_token(token, has.secret),
            hours=has.settings.session_hours,
        )
        return begun.expires_at

    response = _answer(has.database.transact(begin), cookie.csrf_token(token, has.secret), status=201)
    cookie.give(request, response, token, max_age_s=int(has.settings.session_hours * 3600))
    return response


@router.get("", operation_id="sessions_get", response_model=SessionRead, responses=responses(404))
def get(request: Request, principal: Anybody, has: ServicesDep) -> Response:
    """The session of the request's cookie."""
    token = _token(request, principal)
    with has.database.read() as session:
        found = repository.live(session, cookie.hash_token(token, has.secret))
    if found is None:  # it ended since the request was admitted
        raise _no_session()
    return _answer(found.expires_at, cookie.csrf_token(token, has.secret))


@router.delete("", operation_id="sessions_delete", status_code=204, responses=responses(404))
def delete(request: Request, principal: Anybody, has: ServicesDep) -> Response:
    """Sign out: the cookie is worth nothing from now on, wherever it was copied to."""
    hashed = cookie.hash_token(_token(request, principal), has.secret)
    has.database.transact(lambda session: service.end(session, hashed))
    response = Response(status_code=204, headers=NO_STORE)
    cookie.take_back(response)
    return response


def _token(request: Request, principal: Principal) -> str:
    token = cookie.token_of(request) if principal.session else None
    if token is None:
        raise _no_session()
    return token


def _no_session() -> NotFound:
    return NotFound("The request has an API key and no session: POST begins one.")


def _answer(expires_at: int, csrf_token: str, status: int = 200) -> Response:
    body = orjson.dumps({"expires_at": iso(expires_at), "csrf_token": csrf_token})
    return Response(body, status, NO_STORE, "application/json")
