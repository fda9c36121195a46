"""Sessions: begin, end. Functions take a session of the database inside a write transaction and never commit."""

from __future__ import annotations

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.db import clock, now_ms
from app.keys.models import ApiKey
from app.sessions.models import BrowserSession

HOUR_MS = 3_600_000
OF_ONE_KEY = 50
"""Sessions that a key may have at once: one more, and the oldest ends."""


def begin(session: Session, *, key_id: str, session_hash: str, hours: float) -> BrowserSession:
    """A new session of the key, at most as long as that lives. Those of anybody whose time is over are removed."""
    session.execute(delete(BrowserSession).where(BrowserSession.expires_at <= now_ms()))
    newest = (
        select(BrowserSession.hash)
        .where(BrowserSession.key_id == key_id)
        .order_by(BrowserSession.created_at.desc(), BrowserSession.hash)
        .limit(OF_ONE_KEY - 1)
    )
    kept = session.scalars(newest).all()
    if len(kept) == OF_ONE_KEY - 1:
        session.execute(delete(BrowserSession).where(BrowserSession.key_id == key_id, BrowserSession.hash.not_in(kept)))
    now = clock(session)
    expires_at = now + int(hours * HOUR_MS)
    key_expires_at = session.scalar(select(ApiKey.expires_at).where(ApiKey.id == key_id))
    if key_expires_at is not None:
        expires_at = min(expires_at, key_expires_at)
    begun = BrowserSession(hash=session_hash, key_id=key_id, created_at=now, expires_at=expires_at)
    session.add(begun)
    session.flush()
    return begun


def end(session: Session, session_hash: str) -> None:
    """Refuse the session from the next request on; one that is not there has ended."""
    session.execute(delete(BrowserSession).where(BrowserSession.hash == session_hash))
