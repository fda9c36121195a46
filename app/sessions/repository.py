"""SELECTs about sessions."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, bindparam, select
from sqlalchemy.orm import Session

from app.db import now_ms, table
from app.keys.models import ApiKey
from app.sessions.models import BrowserSession

_session, _key = table(BrowserSession).c, table(ApiKey).c
_KEY_HASHES = (
    select(_session.hash, _key.hash)
    .join_from(table(BrowserSession), table(ApiKey), _key.id == _session.key_id)
    .where(_session.hash.in_(bindparam("hashes", expanding=True)), _session.expires_at > now_ms())
)


def key_hashes(connection: Connection, session_hashes: Sequence[str]) -> dict[str, str]:
    """Session's hash -> its key's, of those that have not ended."""
    return {row[0]: row[1] for row in connection.execute(_KEY_HASHES, {"hashes": session_hashes})}


def live(session: Session, session_hash: str) -> BrowserSession | None:
    return session.scalar(
        select(BrowserSession).where(BrowserSession.hash == session_hash, BrowserSession.expires_at > now_ms())
    )
