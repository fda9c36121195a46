"""A dashboard on a generated client: the latest jobs, a job submitted and followed, and what its report measured.

    pip install openapi-python-client==0.29.1
    openapi-python-client generate --url $ESPALIER_URL/openapi.json --meta none --output-path espalier_client
    ESPALIER_API_KEY=… python dashboard.py

Every name below is the generator's; nothing of the client was changed by hand.
"""

from __future__ import annotations

import os
import sys
import time

from espalier_client import AuthenticatedClient
from espalier_client.api.jobs import jobs_create, jobs_get, jobs_list
from espalier_client.api.reports import jobs_report
from espalier_client.models import (
    CompressionSpec,
    JobPage,
    JobRead,
    JobReadStatus,
    JobSubmit,
    JobSubmitLabels,
    MagnitudeParams,
    MaskParams,
    ModelRef,
    PerplexityParams,
    Problem,
    Progress,
    Report,
)

ENDED = {JobReadStatus.SUCCEEDED, JobReadStatus.FAILED, JobReadStatus.CANCELLED}


def submit(client: AuthenticatedClient) -> JobRead:
    spec = CompressionSpec(
        model=ModelRef(id="bookworm-7m"),
        score=MagnitudeParams(method="magnitude"),
        prune=MaskParams(method="mask", sparsity=0.3),
        evaluate=[PerplexityParams(method="perplexity", dataset="heldout.txt", sequence_length=256, samples=8)],
    )
    labels = JobSubmitLabels()
    labels["from"] = "dashboard"
    made = jobs_create.sync(client=client, body=JobSubmit(spec=spec, labels=labels))
    if not isinstance(made, JobRead):
        raise SystemExit(f"refused: {made.detail if isinstance(made, Problem) else made}")
    return made


def follow(client: AuthenticatedClient, job: JobRead) -> JobRead:
    while job.status not in ENDED:
        time.sleep(0.5)
        seen = jobs_get.sync(job.id, client=client)
        if isinstance(seen, JobRead):  # else the service is busy: ask again
            job = seen
        at = job.progress
        print(f"{job.status}  {f'{at.stage} {at.done}/{at.total} {at.unit}' if isinstance(at, Progress) else ''}")
    return job


def show(report: Report) -> None:
    print(f"\n{report.spec.model.id}: {100 * report.sparsity:.1f} % removed")
    for metric in report.metrics:
        print(f"{metric.name:40} {metric.dense:10.4g} -> {metric.pruned:10.4g} {metric.unit}")


def main() -> None:
    client = AuthenticatedClient(os.environ["ESPALIER_URL"], token=os.environ["ESPALIER_API_KEY"])
    with client:
        job = follow(client, submit(client))
        latest = jobs_list.sync(client=client, limit=10)
        if isinstance(latest, JobPage):
            for each in latest.data:
                print(f"{each.created_at:%Y-%m-%d %H:%M}  {each.status:10} {each.id}  {each.spec.model.id}")
        found = jobs_report.sync(job.id, client=client)
        if not isinstance(found, Report):
            sys.exit(f"no report: {found.detail if isinstance(found, Problem) else found}")
        show(found)


if __name__ == "__main__":
    main()
