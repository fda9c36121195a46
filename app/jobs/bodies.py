"""Jobs as they were rendered, kept under what names each body exactly: a list page renders what has changed.

Nothing here is stale: which jobs a page holds, their versions and their places in the queue are asked for each request.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from sqlalchemy import Connection

from app.jobs import repository
from app.jobs.repository import Listed, Page
from app.jobs.views import Place, render

Name = tuple[str, int, int, Place | None]
"""Id, version, time of the last change, place in the queue. The time tells apart what a restored database does anew."""


class Bodies:
    """Used by several threads at once."""

    def __init__(self, most_bytes: int = 2**24) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._bodies: dict[Name, bytes] = {}
        self._lock = threading.Lock()

    def page(self, connection: Connection, tenant_id: str, asked: Page) -> tuple[Sequence[Listed], list[bytes]]:
        """The tenant's jobs on that page."""
        listed: Sequence[Listed] = repository.page(connection, tenant_id, asked)
        places = repository.places(connection, listed)
        bodies = [self._bodies.get(_name(job, places)) for job in listed]
        found = [body for body in bodies if body is not None]
        if len(found) == len(listed):
            return listed, found
        # All of them, in one statement: of two, the second might hold a job that has left the filter since the first.
        views = repository.whole_page(connection, tenant_id, asked)
        places = repository.places(connection, views)
        found = [render(job, places.get(job.id)) for job in views]
        self._keep({_name(job, places): body for job, body in zip(views, found, strict=True)})
        return views, found

    def _keep(self, made: Mapping[Name, bytes]) -> None:
        with self._lock:
            for name, body in made.items():
                if name not in self._bodies:
                    self._bodies[name] = body
                    self._bytes += len(body)
            while self._bytes > self._most_bytes:
                self._bytes -= len(self._bodies.pop(next(iter(self._bodies))))


def _name(job: Listed, places: Mapping[str, Place]) -> Name:
    return job.id, job.version, job.updated_at, places.get(job.id)
