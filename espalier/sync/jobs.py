"""A job: look at it, wait for it, follow it, change it, take its result."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from espalier.documents.base import Page
from espalier.documents.jobs import Artifact, Attempt, Event, JobDocument
from espalier.documents.publications import UNDER_WAY, Publication
from espalier.documents.reports import Report
from espalier.errors import JobCancelled, JobFailed, UnexpectedAnswer, WaitTimeout
from espalier.queries import segment
from espalier.sync import downloads, events
from espalier.sync.connection import json_of
from espalier.sync.events import LogLine
from espalier.sync.reference import Reference
from espalier.sync.runtime import sleep

LONGEST_WAIT_S = 20
"""Of one request; the service answers as soon as something changes."""
LOOK_EVERY_S = 1
"""At publications, which change after the job has ended."""


class JobRef(Reference):
    """A job by its id. Nothing is asked before a method is called; those that return the job ask for it."""

    def refresh(self) -> Job:
        """The job as it is now."""
        return self._job(self._connection.get(self._path))

    def changes(self, timeout: float | None = None) -> Iterator[Job]:
        """The job as it is, then again whenever it has changed (its status, progress or place in the queue), until it
        has ended. Costs one waiting request at a time. Raises WaitTimeout after `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        etag = ""
        while True:
            left_s = LONGEST_WAIT_S if end is None else min(LONGEST_WAIT_S, max(math.ceil(end - time.monotonic()), 0))
            headers = {"Prefer": f"wait={left_s}", "If-None-Match": etag} if etag else {}
            response = self._connection.request("GET", self._path, headers=headers, wait_s=left_s if headers else 0)
            if response.status_code != 304:
                etag = response.headers.get("ETag", "")
                job = self._job(json_of(response))
                yield job
                if job.ended:
                    return
            if not etag or (headers and "Preference-Applied" not in response.headers):
                sleep(1)  # something between us and the service takes them away: the answer came at once
            if end is not None and time.monotonic() >= end:
                raise WaitTimeout(f"{self.id} is still {job.status} after {timeout:g} s; it goes on")

    def wait(self, timeout: float | None = None) -> Job:
        """The job once it has ended, however: `raise_unless_succeeded()` checks that. A paused job is waited for too.
        Raises WaitTimeout after `timeout` seconds."""
        for job in self.changes(timeout):
            ended = job
        return ended

    def events(self, after: int = 0) -> Iterator[Event]:
        """Its events behind number `after`, from the first on, as they happen, until it has ended. A broken stream is
        taken up where it broke."""
        for event in events.events(self._connection, self.id, after):
            yield event

    def logs(self, *, attempt: int | None = None, tail: int | None = None) -> str:
        """What its process has written: of the latest attempt, or of `attempt`; all, or the `tail` last lines."""
        return events.log_text(self._connection, self.id, attempt, tail)

    def follow_logs(self, *, attempt: int | None = None, tail: int | None = None) -> Iterator[LogLine]:
        """Lines as they are written, over all attempts from the latest or `attempt` on, until it has ended."""
        for line in events.log_lines(self._connection, self.id, attempt, tail):
            yield line

    def cancel(self) -> Job:
        """Stop it, queued or running. Doing it twice is fine."""
        return self._act("cancel", repeatable=True)

    def pause(self) -> Job:
        """Have it keep what is finished and give its worker back. Doing it twice is fine."""
        return self._act("pause", repeatable=True)

    def resume(self) -> Job:
        """Queue it again after a pause, at the place it had. Doing it twice is fine."""
        return self._act("resume", repeatable=True)

    def retry(self) -> Job:
        """Queue it again after it failed or was cancelled."""
        return self._act("retry", repeatable=False)

    def label(self, labels: Mapping[str, str | None]) -> Job:
        """Change labels; None removes one, others stay."""
        response = self._connection.request("PATCH", self._path, json={"labels": dict(labels)})
        return self._job(json_of(response))

    def pin(self, pinned: bool = True) -> Job:
        """Have no retention policy remove its files, or let them again."""
        response = self._connection.request("PATCH", self._path, json={"pinned": pinned})
        return self._job(json_of(response))

    def delete(self) -> None:
        """Delete it and its files, once it has ended."""
        self._connection.request("DELETE", self._path)

    def publish(self, place: Mapping[str, Any]) -> Publication:
        """Have its result brought somewhere, once it has succeeded: docs/publishing.md. Doing it twice is fine."""
        path = f"{self._path}/publications"
        return Publication.read(self._connection.post(path, dict(place), repeatable=True))

    def retry_publication(self, publication_id: str) -> Publication:
        """Try one again that has failed."""
        path = f"{self._path}/publications/{segment(publication_id)}/retry"
        return Publication.read(self._connection.post(path, repeatable=False))

    def wait_published(self, timeout: float | None = None) -> Job:
        """The job once none of its publications is under way. Raises WaitTimeout after `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            job = self.refresh()
            if not any(each.state in UNDER_WAY for each in job.publications):
                return job
            if end is not None and time.monotonic() >= end:
                raise WaitTimeout(f"{self.id} is still being published after {timeout:g} s; it goes on")
            sleep(LOOK_EVERY_S)

    def report(self) -> Report:
        """What it did, before and after; once it has succeeded."""
        headers = {"Accept": "application/json"}
        return Report.read(self._connection.get(f"{self._path}/report", headers=headers))

    def report_page(self) -> bytes:
        """The report as an HTML page with plots."""
        headers = {"Accept": "text/html"}
        return (self._connection.request("GET", f"{self._path}/report", headers=headers)).content

    def attempts(self) -> list[Attempt]:
        """Every try at it, oldest first."""
        return Page.of(self._connection.get(f"{self._path}/attempts"), Attempt.read).data

    def artifacts(self) -> list[Artifact]:
        """The files of its result; none until it has succeeded."""
        return Page.of(self._connection.get(f"{self._path}/artifacts"), Artifact.read).data

    def download(
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
        files = self.artifacts() if files is None else files
        return downloads.download(self._connection, files, Path(folder), at_once=at_once, on_progress=on_progress)

    @property
    def _path(self) -> str:
        return f"/v1/jobs/{segment(self.id)}"

    def _job(self, raw: Mapping[str, Any]) -> Job:
        """The job in an answer about this one."""
        return Job.of(self._connection, raw)

    def _act(self, verb: str, *, repeatable: bool) -> Job:
        return self._job(self._connection.post(f"{self._path}/{verb}", repeatable=repeatable))


class Job(JobDocument, JobRef):
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

    def _job(self, raw: Mapping[str, Any]) -> Job:
        return self.take(raw)
