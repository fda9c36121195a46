"""A file of the operator's that is read again when it changes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import structlog

log = structlog.get_logger(__name__)
T = TypeVar("T")


class Unreadable(ValueError):
    """A file that cannot be read; says why."""


class WatchedFile(Generic[T]):
    """The content that `read` makes of a file, or `missing` where there is none. Safe to share between threads."""

    def __init__(self, path: Path, read: Callable[[Path], T], missing: T) -> None:
        """`read` raises Unreadable or a subclass; so does this, the first time."""
        self.path, self._read = path, read
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._content = missing if self._stamp is None else read(path)

    def content(self) -> T:
        """A file that cannot be read any more is said in the log, and its last content stays."""
        with self._lock:
            try:
                if (stamp := self._look()) not in (None, self._stamp):
                    self._stamp = stamp
                    self._content = self._read(self.path)
            except Unreadable as error:
                log.error("file_unreadable", error=str(error))
            return self._content

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unreadable(f"{self.path}: {error.strerror}") from None
        return found.st_ino, found.st_mtime_ns, found.st_size
