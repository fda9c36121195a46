"""Ships an attempt's log to the artifact store while it runs, so that it outlives the worker."""

from __future__ import annotations

import time
from pathlib import Path

import structlog

from app.storage import AlreadyStored, ArtifactStore
from app.text import readable

log = structlog.get_logger(__name__)

EVERY_S = 5.0
CHUNK_BYTES = 1 << 20


class LogShipper:
    """Copies the bytes appended to the log file since the last call, as numbered chunks."""

    def __init__(self, store: ArtifactStore, scope: tuple[str, str, int, int], path: Path) -> None:
        """`scope` is (tenant id, job id, attempt, fence)."""
        self._store, self._scope, self._path = store, scope, path
        self._offset = 0
        self._chunks = 0
        self._shipped_at = time.monotonic()

    def ship_now_and_then(self) -> None:
        """Ship if the last time was long enough ago. If the store does not answer, the bytes are sent next time."""
        if time.monotonic() - self._shipped_at >= EVERY_S:
            self._shipped_at = time.monotonic()
            try:
                self.ship()
            except Exception as error:  # the log must never fail the job
                log.warning("log_not_shipped", error=repr(error))

    def ship(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            while chunk := file.read(CHUNK_BYTES):
                self._put(chunk)
                self._offset += len(chunk)

    def say_and_ship(self, text: str) -> None:
        """End the log with a message of the service. The job's error holds it too, so it may be lost with the store."""
        try:
            self.ship()
            self._put(readable(text).encode())
        except Exception as error:  # the log must never fail the job
            log.warning("log_not_shipped", error=repr(error))

    def _put(self, data: bytes) -> None:
        while True:
            key = self._store.log_key(*self._scope, self._chunks)
            self._chunks += 1
            try:
                return self._store.put_bytes(key, data)
            except AlreadyStored:  # by an attempt of that number from before the database was restored from a backup
                continue
