"""Who is asking, for which job, and whether the key may: looked up on every request, both in one query.

The key stands in `Authorization: Bearer espk_…`, or the cookie of a browser's session stands for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

import orjson
from fastapi import Depends, Path
from fastapi.openapi.models import HTTPBearer as HTTPBearerModel
from fastapi.security.base import SecurityBase
from starlette.requests import Request

from app.errors import Forbidden, NotFound, Unauthenticated
from app.ids import is_id
from app.jobs.status_reader import Seen
from app.jobs.views import JOB_ID, JobView, Place
from app.keys.scopes import Scope
from app.keys.tokens import hash_token, well_formed
from app.services import services
from app.sessions import cookie


@dataclass(frozen=True)
class Principal:
    """On whose behalf a request acts."""

    key_id: str
    key_name: str
    tenant_id: str
    scopes: frozenset[str]
    session: bool
    """Whether a session's cookie stood for the key."""


@dataclass(frozen=True)
class JobSeen:
    """The job that a request names, read after the request arrived."""

    principal: Principal
    job: JobView
    place: Place | None


class _ApiKey(SecurityBase):
    scheme_name = "ApiKey"
    model = HTTPBearerModel(bearerFormat="espk_…", description="An API key; `espalier keys create` makes one.")

    def __init__(self, scope: Scope | None) -> None:
        self.scope = scope


class Requires(_ApiKey):
    """Dependency: the principal. Its key must have the scope; any key will do where that is None."""

    async def __call__(self, request: Request) -> Principal:
        # Asked before the body is read, and again as a dependency.
        if not hasattr(request.state, "seen"):
            request.state.seen = await look(request)
        return _admitted(request, request.state.seen, self.scope)


class RequiresJob(_ApiKey):
    """Dependency: the principal and the job of the path."""

    async def __call__(self, request: Request, job_id: Annotated[str, Path(examples=[JOB_ID])]) -> JobSeen:
        return await look_at_job(request, job_id, self.scope)


Reader = Annotated[Principal, Depends(Requires("jobs:read"))]
Writer = Annotated[Principal, Depends(Requires("jobs:write"))]
Canceller = Annotated[Principal, Depends(Requires("jobs:cancel"))]
JobReader = Annotated[JobSeen, Depends(RequiresJob("jobs:read"))]
ArtifactReader = Annotated[JobSeen, Depends(RequiresJob("artifacts:read"))]


async def look_at_job(request: Request, job_id: str, scope: Scope | None) -> JobSeen:
    """The principal and the job, found by one query. A foreign job is a missing one: NotFound."""
    seen = await look(request, job_id)
    principal = _admitted(request, seen, scope)
    if seen.job is None:
        raise no_such_job()
    return JobSeen(principal, seen.job, seen.place)


async def look(request: Request, job_id: str = "") -> Seen:
    """The key and the job as they are now. Raises Unauthenticated where there is no key that could be one, and
    Forbidden where a session's cookie comes from another site's page."""
    has = services(request)
    job_id = job_id if is_id("job", job_id) else ""
    if session := _session_of(request):
        cookie.check_may_change(request, session, has.secret)
        seen = await has.reader.look("", job_id, cookie.hash_token(session, has.secret))
        if seen.key is None:
            raise _unauthenticated("The session has ended: sign in again.", code="session_ended")
        return seen
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise _unauthenticated("Send an API key: `Authorization: Bearer espk_…`.", code="unauthenticated")
    if not well_formed(token):
        raise _unauthenticated("The API key is mistyped or cut off: its checksum does not fit.", code="invalid_key")
    return await has.reader.look(hash_token(token, has.secret), job_id)


def check_priority(principal: Principal, priority: int) -> None:
    """Raises Forbidden where the key may not submit ahead of its tenant's other jobs."""
    scope: Scope = "jobs:priority"
    if priority > 0 and scope not in principal.scopes:
        raise Forbidden(
            f"A priority above 0 needs a key with the scope `{scope}`: leave `priority` out, or at most 0.",
            code="missing_scope",
            allowed=[scope],
        )


def check_publish(principal: Principal) -> None:
    """Raises Forbidden where the key may not have results published."""
    scope: Scope = "publish"
    if scope not in principal.scopes:
        raise Forbidden(
            f"To publish needs a key with the scope `{scope}`: leave `publish` out, or use another key.",
            code="missing_scope",
            allowed=[scope],
        )


def no_such_job() -> NotFound:
    return NotFound("There is no such job: check the id, and that the key is of the tenant that submitted it.")


def _session_of(request: Request) -> str | None:
    """The text of a session. A key that is sent too comes first: no other site can make a browser send one."""
    return None if "authorization" in request.headers else cookie.token_of(request)


def _admitted(request: Request, seen: Seen, scope: Scope | None) -> Principal:
    key = seen.key
    if key is None:
        raise _unauthenticated("The service does not know this API key.", code="invalid_key")
    if key.revoked:
        raise _unauthenticated("This API key has been revoked; use another one.", code="revoked_key")
    if key.expired:
        raise _unauthenticated("This API key has expired; use another one.", code="expired_key")
    if key.max_requests is not None and not hasattr(request.state, "counted"):  # a stream looks again and again
        request.state.counted = True
        services(request).rates.count(key.tenant_id, key.max_requests)
    if scope is not None and scope not in _scopes(key.scopes):
        raise Forbidden(f"This needs a key with the scope `{scope}`.", code="missing_scope", allowed=[scope])
    if key.touch:
        services(request).key_usage.note(key.id)
    return Principal(key.id, key.name, key.tenant_id, _scopes(key.scopes), session=_session_of(request) is not None)


@lru_cache(maxsize=256)
def _scopes(text: str) -> frozenset[str]:
    return frozenset(orjson.loads(text))


def _unauthenticated(detail: str, *, code: str) -> Unauthenticated:
    challenge = 'Bearer realm="espalier"' + ("" if code == "unauthenticated" else ', error="invalid_token"')
    return Unauthenticated(detail, code=code, headers={"WWW-Authenticate": challenge})
