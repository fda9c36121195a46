"""A job: look at it, wait for it, follow it, change it, take its result."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Self

from espalier.aio import downloads, events
from espalier.aio.connection import json_of
from espalier.aio.events import LogLine
from espalier.aio.reference import AsyncReference
from espalier.aio.runtime import sleep
from espalier.documents.base import Page
from espalier.documents.jobs import Artifact, Attempt, Event, JobDocument
from espalier.documents.publications import UNDER_WAY, Publication
from espalier.documents.reports import Report
from espalier.errors import JobCancelled, JobFailed, UnexpectedAnswer, WaitTimeout
from espalier.queries import segment

LONGEST_WAIT_S = 20
"""Of one request; the service answers as soon as something changes."""
LOOK_EVERY_S = 1
"""At publications, which change after the job has ended."""


class AsyncJobRef(AsyncReference):
    """A job by its id. Nothing is asked before a method is called; those that return the job ask for it."""

    async def refresh(self) -> AsyncJob:
        """The job as it is now."""
        return self._job(await self._connection.get(self._path))

    async def changes(self, timeout: float | None = None) -> AsyncIterator[AsyncJob]:
        """The job as it is, then again whenever it has changed (its status, progress or place in the queue), until it
        has ended. Costs one waiting request at a time. Raises WaitTimeout after `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        etag = ""
        while True:
            left_s = LONGEST_WAIT_S if end is None else min(LONGEST_WAIT_S, max(math.ceil(end - time.monotonic()), 0))
            headers = {"Prefer": f"wait={left_s}", "If-None-Match": etag} if etag else {}
            response = await self._connection.request(
                "GET", self._path, headers=headers, wait_s=left_s if headers else 0
            )
            if response.status_code != 304:
                etag = response.headers.get("ETag", "")
                job = self._job(json_of(response))
                yield job
                if job.ended:
                    return
            if not etag or (headers and "Preference-Applied" not in response.headers):
                await sleep(1)  # something between us and the service takes them away: the answer came at once
            if end is not None and time.monotonic() >= end:
                raise WaitTimeout(f"{self.id} is still {job.status} after {timeout:g} s; it goes on")

    async def wait(self, timeout: float | None = None) -> AsyncJob:
        """The job once it has ended, however: `raise_unless_succeeded()` checks that. A paused job is waited for too.
        Raises WaitTimeout after `timeout` seconds."""
        async for job in self.changes(timeout):
            ended = job
        return ended

    async def events(self, after: int = 0) -> AsyncIterator[Event]:
        """Its events behind number `after`, from the first on, as they happen, until it has ended. A broken stream is
        taken up where it broke."""
        async for event in events.events(self._connection, self.id, after):
            yield event

    async def logs(self, *, attempt: int | None = None, tail: int | None = None) -> str:
        """What its process has written: of the latest attempt, or of `attempt`; all, or the `tail` last lines."""
        return await events.log_text(self._connection, self.id, attempt, tail)

    async def follow_logs(self, *, attempt: int | None = None, tail: int | None = None) -> AsyncIterator[LogLine]:
        """Lines as they are written, over all attempts from the latest or `attempt` on, until it has ended."""
        async for line in events.log_lines(self._connection, self.id, attempt, tail):
            yield line

    async def cancel(self) -> AsyncJob:
        """Stop it, queued or running. Doing it twice is fine."""
        return await self._act("cancel", repeatable=True)

    async def pause(self) -> AsyncJob:
        """Have it keep what is finished and give its worker back. Doing it twice is fine."""
        return await self._act("pause", repeatable=True)

    async def resume(self) -> AsyncJob:
        """Queue it again after a pause, at the place it had. Doing it twice is fine."""
        return await self._act("resume", repeatable=True)

    async def retry(self) -> AsyncJob:
        """Queue it again after it failed or was cancelled."""
        return await self._act("retry", repeatable=False)

    async def label(self, labels: Mapping[str, str | None]) -> AsyncJob:
        """Change labels; None removes one, others stay."""
        response = await self._connection.request("PATCH", self._path, json={"labels": dict(labels)})
        return self._job(json_of(response))

    async def pin(self, pinned: bool = True) -> AsyncJob:
        """Have no retention policy remove its files, or let them again."""
        response = await self._connection.request("PATCH", self._path, json={"pinned": pinned})
        return self._job(json_of(response))

    async def delete(self) -> None:
        """Delete it and its files, once it has ended."""
        await self._connection.request("DELETE", self._path)

    async def publish(self, place: Mapping[str, Any]) -> Publication:
        """Have its result brought somewhere, once it has succeeded: docs/publishing.md. Doing it twice is fine."""
        path = f"{self._path}/publications"
        return Publication.read(await self._connection.post(path, dict(place), repeatable=True))

    async def retry_publication(self, publication_id: str) -> Publication:
        """Try one again that has failed."""
        path = f"{self._path}/publications/{segment(publication_id)}/retry"
        return Publication.read(await self._connection.post(path, repeatable=False))

    async def wait_published(self, timeout: float | None = None) -> AsyncJob:
        """The job once none of its publications is under way. Raises WaitTimeout after `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            job = await self.refresh()
            if not any(each.state in UNDER_WAY for each in job.publications):
                return job
            if end is not None and time.monotonic() >= end:
                raise WaitTimeout(f"{self.id} is still being published after {timeout:g} s; it goes on")
            await sleep(LOOK_EVERY_S)

    async def report(self) -> Report:
        """What it did, before and after; once it has succeeded."""
        headers = {"Accept": "application/json"}
        return Report.read(await self._connection.get(f"{self._path}/report", headers=headers))

    async def report_page(self) -> bytes:
        """The report as an HTML page with plots."""
        headers = {"Accept": "text/html"}
        return (await self._connection.request("GET", f"{self._path}/report", headers=headers)).content

    async def attempts(self) -> list[Attempt]:
        """Every try at it, oldest first."""
        return Page.of(await self._connection.get(f"{self._path}/attempts"), Attempt.read).data

    async def artifacts(self) -> list[Artifact]:
        """The files of its result; none until it has succeeded."""
        return Page.of(await self._connection.get(f"{self._path}/artifacts"), Artifact.read).data

    async def download(
        self,
        folder: str | Path,
        *,
        files: list[Artifact] | None = None,
        at_once: int = 4,
        on_progress: downloads.OnProgress | None = None,
    ) -> list[Path]:
        """Bring its files below `folder`, each checked against its sha256; their paths. What is there already is not
        fetched again, and an interrupted download goes on where it stopped.

        Args:
            folder: Made if missing.
            files: Some of `artifacts()`. Default: all.
            at_once: How many are fetched at a time.
            on_progress: Called with a file and how many of its bytes are there.
        """
        files = await self.artifacts() if files is None else files
        return await downloads.download(self._connection, files, Path(folder), at_once=at_once, on_progress=on_progress)

    @property
    def _path(self) -> str:
        return f"/v1/jobs/{segment(self.id)}"

    def _job(self, raw: Mapping[str, Any]) -> AsyncJob:
        """The job in an answer about this one."""
        return AsyncJob.of(self._connection, raw)

    async def _act(self, verb: str, *, repeatable: bool) -> AsyncJob:
        return self._job(await self._connection.post(f"{self._path}/{verb}", repeatable=repeatable))


class AsyncJob(JobDocument, AsyncJobRef):
    """A job. Its fields are as of the last answer; `refresh`, `wait` and whatever changes it bring them up to date."""

    def raise_unless_succeeded(self) -> Self:
        """The job itself. Raises JobFailed or JobCancelled, if that is how it ended."""
        if self.status == "failed":
            if self.error is None:
                raise UnexpectedAnswer(f"{self.id} has failed, and the service does not say why")
            raise JobFailed(self.id, self.error)
        if self.status == "cancelled":
            raise JobCancelled(self.id)
        return self

    def _job(self, raw: Mapping[str, Any]) -> AsyncJob:
        return self.take(raw)
