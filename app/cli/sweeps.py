"""Commands about sweeps: submit, list, show, pareto, cancel, delete."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from app.cli import output
from app.cli.exits import Usage
from app.cli.jobs import print_deleted, read_json
from app.cli.options import AsJson, connect
from espalier import Sweep
from espalier.documents import Pareto, ParetoPoint, PlannedChild, SweepChild, SweepPlan, SweepSummary
from workers.engine.reporting.short import short

SweepId = Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep's id, swp_….")]
SweepFile = Annotated[
    str, typer.Argument(metavar="SWEEP.json", help="What POST /v1/sweeps takes: spec, grid or list, …; - for stdin.")
]


def submit(
    context: typer.Context,
    sweep: SweepFile,
    dry_run: Annotated[bool, typer.Option(help="Show what would be done; create nothing.")] = False,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Submitting twice with one key makes one sweep. Default: a new key.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Submit a sweep: a job for each combination of the values in its grid."""
    body = read_json(sweep)
    with connect(context) as client:
        if dry_run:
            plan = client.plan_sweep(body)
            output.print_json(plan.raw) if as_json else _print_plan(plan)
            return
        made = client.submit_sweep(body, idempotency_key=idempotency_key)
    output.print_json(made.raw) if as_json else _print_sweep(made)


def show(context: typer.Context, sweep_id: SweepId, as_json: AsJson = False) -> None:
    """Show a sweep and how each of its jobs is."""
    with connect(context) as client:
        sweep = client.sweep(sweep_id)
    output.print_json(sweep.raw) if as_json else _print_sweep(sweep)


def list_sweeps(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=200, help="Most sweeps to show, newest first.")] = 20,
    cursor: Annotated[str | None, typer.Option(help="Go on after an earlier page: its next_cursor.")] = None,
    as_json: AsJson = False,
) -> None:
    """List sweeps, newest first."""
    with connect(context) as client:
        page = client.sweep_page(limit=limit, cursor=cursor)
    if as_json:
        output.print_json(page.raw)
        return
    table = output.table("", "sweep", "name", "status", "jobs", "created")
    for sweep in page.data:
        made = output.local_time(sweep.created_at)
        table.add_row(sweep.id, sweep.name or "", sweep.status, _counts(sweep), made)
    output.stdout.print(table)
    if page.next_cursor:
        output.stderr.print(f"more: --cursor {page.next_cursor}")


def pareto(
    context: typer.Context,
    sweep_id: SweepId,
    quality: Annotated[str | None, typer.Option(help="A measurement. Default: the first one with a direction.")] = None,
    cost: Annotated[str | None, typer.Option(help="Another. Default: the first exact one that differs.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the page with the figure to this file instead.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the Pareto front of a sweep: of the jobs whose gates do not fail, those that no other beats in quality and
    cost."""
    with connect(context) as client:
        sweep = client.sweep_ref(sweep_id)
        if html is None:
            found = sweep.pareto(quality=quality, cost=cost)
            output.print_json(found.raw) if as_json else _print_pareto(found)
            return
        page = sweep.pareto_page(quality=quality, cost=cost)
    try:
        html.write_bytes(page)
    except OSError as error:
        raise Usage(f"{html}: {error.strerror}") from error
    if as_json:
        output.print_json({"id": sweep_id, "html": str(html.absolute())})
    else:
        output.stdout.print(f"comparison: {html.absolute().as_uri()}")


def cancel(context: typer.Context, sweep_id: SweepId, as_json: AsJson = False) -> None:
    """Stop the jobs of a sweep that have not ended."""
    with connect(context) as client:
        sweep = client.sweep_ref(sweep_id).cancel()
    output.print_json(sweep.raw) if as_json else _print_sweep(sweep)


def delete(context: typer.Context, sweep_id: SweepId, as_json: AsJson = False) -> None:
    """Delete a completed sweep, its jobs and their files."""
    with connect(context) as client:
        client.sweep_ref(sweep_id).delete()
    print_deleted(sweep_id, as_json=as_json)


def _counts(sweep: SweepSummary) -> Text:
    return Text(", ").join(
        output.marked("{} {}", count, output.status_text(status)) for status, count in sweep.counts.items()
    )


def _print_sweep(sweep: Sweep) -> None:
    output.stdout.print(
        output.marked("[bold]{}[/] {}  {}: {}", sweep.id, sweep.name or "", sweep.status, _counts(sweep))
    )
    table = output.table("", "no.", *sweep.parameters, "job", "status", "verdict", "", right=("no.",))
    for child in sweep.children:
        why = f"{child.error.message} ({child.error.code})" if child.error else ""
        table.add_row(
            str(child.number),
            *_values(sweep.parameters, child),
            child.job_id or "",
            output.status_text(child.status),
            output.verdict_text(child.verdict),
            why if child.stopped_by is None else f"stopped by {child.stopped_by}",
        )
    output.stdout.print(table)
    output.stdout.print(f"\nespalier sweep pareto {sweep.id}")


def _print_plan(plan: SweepPlan) -> None:
    parameters = list(dict.fromkeys(pointer for child in plan.children for pointer in child.values))
    numbers = ("no.", "parameters", "zeros", "weight bytes", "peak memory", "run time")
    table = output.table("What this would do; nothing was created", "no.", *parameters, *numbers[1:], right=numbers)
    for child in plan.children:
        table.add_row(
            str(child.number),
            *_values(parameters, child),
            *map(output.found, (child.parameters_after, child.zeros_after, child.bytes_after)),
            f"about {child.peak_memory_bytes / 2**20:,.0f} MiB",
            f"about {output.duration(child.elapsed_s)}",
        )
    output.stdout.print(table)
    priced = "" if plan.price is None else f", about {plan.price.amount} {plan.price.currency}"
    output.stdout.print(f"about {output.duration(plan.elapsed_s)} one after another on two CPU cores{priced}")
    for warning in dict.fromkeys(warning for child in plan.children for warning in child.warnings):
        output.stdout.print(output.marked("[yellow]warning[/] {}", warning))


def _print_pareto(found: Pareto) -> None:
    quality, cost = found.quality, found.cost
    if quality is None or cost is None:
        output.stdout.print("No job of this sweep has succeeded yet")
    else:
        parameters = list(dict.fromkeys(pointer for point in found.points for pointer in point.values))
        numbers = ("no.", quality.metric, cost.metric)
        table = output.table("", "no.", *parameters, *numbers[1:], "on the front", "verdict", "job", right=numbers)
        for point in found.points:
            table.add_row(
                str(point.number),
                *_values(parameters, point),
                output.number(point.quality),
                output.number(point.cost),
                _on_front(point),
                output.verdict_text(point.verdict),
                point.job_id,
            )
        output.stdout.print(table)
        for axis in (quality, cost):
            better = "higher" if axis.higher_is_better else "lower"
            output.stdout.print(f"{axis.metric} ({axis.unit}): {better} is better")
    for left in found.left_out:
        output.stdout.print(f"not compared: {left.number}: {left.reason}")


def _on_front(point: ParetoPoint) -> Text | str:
    if point.on_front:
        return output.styled("yes", "green")
    return "no: gates fail" if point.verdict == "fail" else ""


def _values(parameters: list[str], child: SweepChild | PlannedChild | ParetoPoint) -> list[str]:
    """The child's value of each parameter: a method by its name, others as JSON."""
    return [short(child.values[pointer]) if pointer in child.values else "" for pointer in parameters]
