"""The client: where jobs, sweeps, models and the rest begin."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any, Unpack

from espalier.aio.jobs import AsyncJob, AsyncJobRef
from espalier.aio.sweeps import AsyncSweep, AsyncSweepRef
from espalier.aio.webhooks import AsyncWebhooks
from espalier.documents.base import Page
from espalier.documents.comparisons import Comparison
from espalier.documents.publications import Credentials
from espalier.documents.reports import Plan
from espalier.documents.service import Capabilities, Me, Model, ModelSummary, Worker
from espalier.documents.sweeps import SweepPlan, SweepSummary
from espalier.queries import JobFilters, JobOptions, given, job_filters, segment, submission


class AsyncClient(AsyncWebhooks):
    """A client of one service, with one key. Close it, or use it in a `with`.

    Requests are sent again after failures where that is safe; submissions carry an Idempotency-Key, so they are.
    """

    # -- jobs ----------------------------------------------------------------------------------------------------------

    async def submit(
        self, spec: Mapping[str, Any], *, idempotency_key: str | None = None, **options: Unpack[JobOptions]
    ) -> AsyncJob:
        """Submit a job.

        Args:
            spec: The compression spec (docs/parameters.md).
            idempotency_key: Submitting twice with one key makes one job. Default: a new key for each call, kept over
                its retries.
            options: labels, priority, max_attempts, deadline_s, retention.

        Raises InvalidRequest, whose `field` and `remedy` say what to change in the spec.
        """
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return AsyncJob.of(self, await self.post("/v1/jobs", submission(spec, options), headers=headers))

    async def plan(self, spec: Mapping[str, Any], **options: Unpack[JobOptions]) -> Plan:
        """What the job would do; nothing is created."""
        params = given(dry_run=True)
        return Plan.read(await self.post("/v1/jobs", submission(spec, options), params=params, repeatable=True))

    async def job(self, job_id: str) -> AsyncJob:
        """A job as it is now."""
        return await self.job_ref(job_id).refresh()

    def job_ref(self, job_id: str) -> AsyncJobRef:
        """A job by its id; nothing is asked yet."""
        return AsyncJobRef.of(self, {"id": job_id})

    async def jobs(self, **filters: Unpack[JobFilters]) -> AsyncIterator[AsyncJob]:
        """Jobs, newest first unless `sort` says otherwise, over all pages."""
        cursor = None
        while True:
            page = await self.job_page(limit=200, cursor=cursor, **filters)
            for job in page.data:
                yield job
            if (cursor := page.next_cursor) is None:
                return

    async def job_page(
        self, *, limit: int = 50, cursor: str | None = None, count: bool = False, **filters: Unpack[JobFilters]
    ) -> Page[AsyncJob]:
        """One page of jobs. `count` asks for the `total` of all pages."""
        params = given(limit=limit, cursor=cursor, count=count or None) + job_filters(filters)
        return Page.of(await self.get("/v1/jobs", params=params), partial(AsyncJob.of, self))

    async def compare(self, job_ids: Sequence[str]) -> Comparison:
        """Two to eight finished jobs beside one another, in this order."""
        return Comparison.read(await self.get("/v1/compare", params=[("job", job_id) for job_id in job_ids]))

    # -- sweeps --------------------------------------------------------------------------------------------------------

    async def submit_sweep(self, sweep: Mapping[str, Any], *, idempotency_key: str | None = None) -> AsyncSweep:
        """Submit a sweep: what POST /v1/sweeps takes (`spec`, `grid` or `list`, `stop`, `name`, …)."""
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return AsyncSweep.of(self, await self.post("/v1/sweeps", sweep, headers=headers))

    async def plan_sweep(self, sweep: Mapping[str, Any]) -> SweepPlan:
        """What the sweep would do; nothing is created."""
        params = given(dry_run=True)
        return SweepPlan.read(await self.post("/v1/sweeps", sweep, params=params, repeatable=True))

    async def sweep(self, sweep_id: str) -> AsyncSweep:
        """A sweep and its children as they are now."""
        return await self.sweep_ref(sweep_id).refresh()

    def sweep_ref(self, sweep_id: str) -> AsyncSweepRef:
        """A sweep by its id; nothing is asked yet."""
        return AsyncSweepRef.of(self, {"id": sweep_id})

    async def sweeps(self) -> AsyncIterator[SweepSummary]:
        """Sweeps without their children, newest first, over all pages."""
        cursor = None
        while True:
            page = await self.sweep_page(limit=200, cursor=cursor)
            for sweep in page.data:
                yield sweep
            if (cursor := page.next_cursor) is None:
                return

    async def sweep_page(
        self, *, limit: int = 50, cursor: str | None = None, count: bool = False
    ) -> Page[SweepSummary]:
        """One page of sweeps."""
        params = given(limit=limit, cursor=cursor, count=count or None)
        return Page.of(await self.get("/v1/sweeps", params=params), SweepSummary.read)

    # -- the service ---------------------------------------------------------------------------------------------------

    async def models(self, *, source: str = "local") -> AsyncIterator[ModelSummary]:
        """Models of the service's folder, or with `source="job"` results of jobs, over all pages."""
        cursor = None
        while True:
            page = await self.model_page(source=source, cursor=cursor)
            for model in page.data:
                yield model
            if (cursor := page.next_cursor) is None:
                return

    async def model_page(
        self, *, source: str = "local", limit: int = 50, cursor: str | None = None
    ) -> Page[ModelSummary]:
        """One page of models."""
        params = given(source=source, limit=limit, cursor=cursor)
        return Page.of(await self.get("/v1/models", params=params), ModelSummary.read)

    async def model(self, model_id: str) -> Model:
        """A model, and for each pruner and grower whether it fits."""
        return Model.read(await self.get(f"/v1/models/{segment(model_id)}"))

    async def workers(self) -> list[Worker]:
        """Workers, their devices, and the tenant's jobs on them."""
        return Page.of(await self.get("/v1/workers"), Worker.read).data

    async def me(self) -> Me:
        """Whose key this is, what it may do, the tenant's quotas and usage."""
        return Me.read(await self.get("/v1/me"))

    async def credentials(self) -> list[Credentials]:
        """Names of the operator's that results may be published under."""
        return Page.of(await self.get("/v1/credentials"), Credentials.read).data

    async def capabilities(self) -> Capabilities:
        """Every method with the JSON Schema of its parameters."""
        return Capabilities.read(await self.get("/v1/capabilities"))
