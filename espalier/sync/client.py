"""The client: where jobs, sweeps, models and the rest begin."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Unpack

from espalier.documents.base import Page
from espalier.documents.comparisons import Comparison
from espalier.documents.publications import Credentials
from espalier.documents.reports import Plan
from espalier.documents.service import Capabilities, Me, Model, ModelSummary, Worker
from espalier.documents.sweeps import SweepPlan, SweepSummary
from espalier.queries import JobFilters, JobOptions, given, job_filters, segment, submission
from espalier.sync.jobs import Job, JobRef
from espalier.sync.sweeps import Sweep, SweepRef
from espalier.sync.webhooks import Webhooks


class Client(Webhooks):
    """A client of one service, with one key. Close it, or use it in a `with`.

    Requests are sent again after failures where that is safe; submissions carry an Idempotency-Key, so they are.
    """

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def submit(
        self, spec: Mapping[str, Any], *, idempotency_key: str | None = None, **options: Unpack[JobOptions]
    ) -> Job:
        """Submit a job.

        Args:
            spec: The compression spec (docs/parameters.md).
            idempotency_key: Submitting twice with one key makes one job. Default: a new key for each call, kept over
                its retries.
            options: labels, priority, max_attempts, deadline_s, retention.

        Raises InvalidRequest, whose `field` and `remedy` say what to change in the spec.
        """
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return Job.of(self, self.post("/v1/jobs", submission(spec, options), headers=headers))

    def plan(self, spec: Mapping[str, Any], **options: Unpack[JobOptions]) -> Plan:
        """What the job would do; nothing is created."""
        params = given(dry_run=True)
        return Plan.read(self.post("/v1/jobs", submission(spec, options), params=params, repeatable=True))

    def job(self, job_id: str) -> Job:
        """A job as it is now."""
        return self.job_ref(job_id).refresh()

    def job_ref(self, job_id: str) -> JobRef:
        """A job by its id; nothing is asked yet."""
        return JobRef.of(self, {"id": job_id})

    def jobs(self, **filters: Unpack[JobFilters]) -> Iterator[Job]:
        """Jobs, newest first unless `sort` says otherwise, over all pages."""
        cursor = None
        while True:
            page = self.job_page(limit=200, cursor=cursor, **filters)
            for job in page.data:
                yield job
            if (cursor := page.next_cursor) is None:
                return

    def job_page(
        self, *, limit: int = 50, cursor: str | None = None, count: bool = False, **filters: Unpack[JobFilters]
    ) -> Page[Job]:
        """One page of jobs. `count` asks for the `total` of all pages."""
        params = given(limit=limit, cursor=cursor, count=count or None) + job_filters(filters)
        return Page.of(self.get("/v1/jobs", params=params), partial(Job.of, self))

    def compare(self, job_ids: Sequence[str]) -> Comparison:
        """Two to eight finished jobs beside one another, in this order."""
        return Comparison.read(self.get("/v1/compare", params=[("job", job_id) for job_id in job_ids]))

    # -- sweeps --------------------------------------------------------------------------------------------------------

    def submit_sweep(self, sweep: Mapping[str, Any], *, idempotency_key: str | None = None) -> Sweep:
        """Submit a sweep: what POST /v1/sweeps takes (`spec`, `grid` or `list`, `stop`, `name`, …)."""
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return Sweep.of(self, self.post("/v1/sweeps", sweep, headers=headers))

    def plan_sweep(self, sweep: Mapping[str, Any]) -> SweepPlan:
        """What the sweep would do; nothing is created."""
        params = given(dry_run=True)
        return SweepPlan.read(self.post("/v1/sweeps", sweep, params=params, repeatable=True))

    def sweep(self, sweep_id: str) -> Sweep:
        """A sweep and its children as they are now."""
        return self.sweep_ref(sweep_id).refresh()

    def sweep_ref(self, sweep_id: str) -> SweepRef:
        """A sweep by its id; nothing is asked yet."""
        return SweepRef.of(self, {"id": sweep_id})

    def sweeps(self) -> Iterator[SweepSummary]:
        """Sweeps without their children, newest first, over all pages."""
        cursor = None
        while True:
            page = self.sweep_page(limit=200, cursor=cursor)
            for sweep in page.data:
                yield sweep
            if (cursor := page.next_cursor) is None:
                return

    def sweep_page(self, *, limit: int = 50, cursor: str | None = None, count: bool = False) -> Page[SweepSummary]:
        """One page of sweeps."""
        params = given(limit=limit, cursor=cursor, count=count or None)
        return Page.of(self.get("/v1/sweeps", params=params), SweepSummary.read)

    # -- the service ---------------------------------------------------------------------------------------------------

    def models(self, *, source: str = "local") -> Iterator[ModelSummary]:
        """Models of the service's folder, or with `source="job"` results of jobs, over all pages."""
        cursor = None
        while True:
            page = self.model_page(source=source, cursor=cursor)
            for model in page.data:
                yield model
            if (cursor := page.next_cursor) is None:
                return

    def model_page(self, *, source: str = "local", limit: int = 50, cursor: str | None = None) -> Page[ModelSummary]:
        """One page of models."""
        params = given(source=source, limit=limit, cursor=cursor)
        return Page.of(self.get("/v1/models", params=params), ModelSummary.read)

    def model(self, model_id: str) -> Model:
        """A model, and for each pruner and grower whether it fits."""
        return Model.read(self.get(f"/v1/models/{segment(model_id)}"))

    def workers(self) -> list[Worker]:
        """Workers, their devices, and the tenant's jobs on them."""
        return Page.of(self.get("/v1/workers"), Worker.read).data

    def me(self) -> Me:
        """Whose key this is, what it may do, the tenant's quotas and usage."""
        return Me.read(self.get("/v1/me"))

    def credentials(self) -> list[Credentials]:
        """Names of the operator's that results may be published under."""
        return Page.of(self.get("/v1/credentials"), Credentials.read).data

    def capabilities(self) -> Capabilities:
        """Every method with the JSON Schema of its parameters."""
        return Capabilities.read(self.get("/v1/capabilities"))
