"""`gate`: may the model of a job ship? The exit code is the answer, for release pipelines."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli import output
from app.cli.exits import GateFailed, GateInconclusive, Usage
from app.cli.options import AsJson, JobId, connect
from app.cli.report import gates_table
from app.cli.watch import ended


def gate(
    context: typer.Context,
    job_id: JobId,
    timeout: Annotated[float | None, typer.Option(min=0, help="Longest wait for the job, s. Default: none.")] = None,
    as_json: AsJson = False,
) -> None:
    """Wait for a job and say whether it passes its gates: exit code 0 if it does, 3 if not, 8 if none can say."""
    with connect(context) as client:
        job = ended(client.job_ref(job_id), timeout).raise_unless_succeeded()
        if job.verdict is None:
            raise Usage(f"{job_id} has no gates, so it cannot pass: add `gates` to its spec")
        report = job.report().raw
    if as_json:
        output.print_json({"id": job_id, "verdict": report["verdict"], "gates": report["gates"]})
    else:
        output.stdout.print(gates_table(report["gates"]))
        output.stdout.print(output.marked("verdict: {}", output.verdict_text(report["verdict"])))
    undecided = [f"{found['metric']}: {found['reason']}" for found in report["gates"] if found["verdict"] != "pass"]
    if report["verdict"] == "fail":
        raise GateFailed("the gates say no:\n" + "\n".join(undecided))
    if report["verdict"] == "inconclusive":
        raise GateInconclusive("the gates cannot tell:\n" + "\n".join(undecided))
