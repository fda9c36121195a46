"""`compare`: finished jobs beside one another."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from app.cli import output
from app.cli.options import AsJson, connect
from espalier.documents import ComparedJob, Comparison, MetricComparison, MetricValue, SpecValue
from workers.engine.reporting.short import short

JobIds = Annotated[list[str], typer.Argument(metavar="JOB JOB …", help="Two to eight finished jobs.")]


def compare(
    context: typer.Context,
    job_ids: JobIds,
    defaults: Annotated[
        bool, typer.Option("--defaults", help="Show defaults of methods that not all of them have, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show where jobs' specs differ, and what each measured. --json has layers and curves too."""
    with connect(context) as client:
        found = client.compare(job_ids)
    output.print_json(found.raw) if as_json else _print(found, defaults=defaults)


def _print(found: Comparison, *, defaults: bool) -> None:
    letters = [chr(ord("A") + number) for number in range(len(found.jobs))]
    jobs = output.table("", "", "job", "status", "verdict", "")
    for letter, job in zip(letters, found.jobs, strict=True):
        error = f"{job.error.message} ({job.error.code})" if job.error else ""
        jobs.add_row(letter, job.id, output.status_text(job.status), output.verdict_text(job.verdict), error)
    output.stdout.print(jobs)
    shown = [field for field in found.spec if defaults or not field.only_defaults]
    specs = output.table("\nSpec", "field", *letters)
    for field in shown:
        specs.add_row(field.path, *map(_value, field.values))
    output.stdout.print(specs if shown else "\nThe specs are the same")
    measured = output.table("\nMeasured", "", "dense", *letters, right=("dense", *letters))
    for title, cells in _sizes(found.jobs).items():
        measured.add_row(title, "", *cells)
    for metric in found.metrics:
        unit = "" if metric.unit in metric.name else f" ({metric.unit})"
        measured.add_row(metric.name + unit, _dense(metric), *map(_measured, metric.values))
    output.stdout.print(measured)
    if not all(metric.same_dense for metric in found.metrics):
        output.stdout.print("differs: measured on other texts or windows, or of other models; these do not compare")


def _value(of: SpecValue) -> str | Text:
    return output.styled("absent", "dim") if of.absent else short(of.value)


def _sizes(jobs: list[ComparedJob]) -> dict[str, list[str]]:
    counts = {"parameters": [job.parameters_after for job in jobs], "weight bytes": [job.weight_bytes for job in jobs]}
    removed = ["–" if job.sparsity is None else f"{job.sparsity:.2%}" for job in jobs]
    numbers = {title: ["–" if n is None else output.number(n) for n in found] for title, found in counts.items()}
    return {"removed": removed, **numbers}


def _dense(metric: MetricComparison) -> str:
    return output.number(next(v.dense for v in metric.values if v)) if metric.same_dense else "differs"


def _measured(value: MetricValue | None) -> str:
    """The pruned value, and the ratio to the dense one with half its interval."""
    if value is None:
        return "–"
    if value.ratio is None:
        return output.number(value.pruned)
    low, high = value.ratio_interval or (0.0, 0.0)
    half = f" ± {(high - low) / 2:.2g}" if high > low else ""
    return f"{output.number(value.pruned)}  ×{value.ratio:.3f}{half}"
