"""Submissions of jobs and sweeps: made once, however often they are sent with the same Idempotency-Key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from starlette.responses import Response

from app.jobs import idempotency
from app.jobs.idempotency import Keyed
from app.services import Services


def accept_once(
    has: Services,
    path: str,
    idempotency_key: str | None,
    tenant_id: str,
    *,
    asked: Callable[[], Any],
    check: Callable[[], None],
    make: Callable[[Session], tuple[str, bytes]],
    poll_after_s: int,
) -> Response:
    """The 202 of a submission to `path`: of a new one, or of the one that came with the same key before.

    `asked` is the submission as JSON (`as_sent`): what must be the same for two requests to be one. `check` raises if a
    new one cannot be carried out. `make` writes it and returns (id, body of the answer); its transaction is committed
    here, and the workers are told.
    """
    keyed = idempotency.keyed(idempotency_key, tenant_id, f"POST {path}", asked)
    if keyed and (replay := _replay(has, path, keyed, poll_after_s)):
        return replay
    check()

    def insert(session: Session) -> tuple[str, bytes]:
        made_id, body = make(session)
        if keyed:
            idempotency.remember(session, keyed, made_id, body, hours=has.settings.idempotency_hours)
        return made_id, body

    try:
        made_id, body = has.database.transact(insert)
    except IntegrityError:
        # Somebody else committed the same key in between; anything else that is not unique is a bug.
        if keyed and (replay := _replay(has, path, keyed, poll_after_s)):
            return replay
        raise
    has.relay.wake()
    return Response(body, 202, _headers(path, made_id, poll_after_s), "application/json")


def as_sent(submit: BaseModel) -> Any:
    """The body of a submission, with the fields that it has: a version that has more gives them no other meaning."""
    return submit.model_dump(mode="json", by_alias=True, exclude_unset=True)


def _replay(has: Services, path: str, keyed: Keyed, poll_after_s: int) -> Response | None:
    with has.database.read() as session:
        answer = idempotency.answered(session, keyed)
    if answer is None:
        return None
    made_id, body = answer
    headers = {**_headers(path, made_id, poll_after_s), "Idempotency-Replayed": "true"}
    return Response(body, 202, headers, "application/json")


def _headers(path: str, made_id: str, poll_after_s: int) -> dict[str, str]:
    return {"Location": f"{path}/{made_id}", "Retry-After": str(poll_after_s)}
