"""`sweep table`: a sweep as a table of a paper."""

from __future__ import annotations

import sys
from dataclasses import replace
from enum import StrEnum
from typing import Annotated

import typer

from app.cli import output
from app.cli.exits import Usage
from app.cli.options import AsJson, connect
from app.cli.paper import Column, Paper, paper
from app.cli.paper_formats import comma_separated, latex, markdown
from app.cli.sweeps import SweepId
from espalier import Client, Sweep


class Format(StrEnum):
    MD = "md"
    CSV = "csv"
    LATEX = "latex"


class Of(StrEnum):
    PRUNED = "pruned"
    RATIO = "ratio"


def table(
    context: typer.Context,
    sweep_id: SweepId,
    format_: Annotated[Format, typer.Option("--format", help="LaTeX is for the package booktabs.")] = Format.MD,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="A measurement; may be repeated. Default: those with a better direction that differ."),
    ] = None,
    of: Annotated[Of, typer.Option(help="The pruned model's values, or their ratios to the dense one's.")] = Of.PRUNED,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until no job is queued or running.")] = False,
    timeout: Annotated[float | None, typer.Option(min=0, help="Longest wait, s. Default: none.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print a row for each configuration: mean ± standard deviation over its seeds, the best values marked.

    Jobs that differ in fields called `seed` alone are one configuration.
    """
    with connect(context) as client:
        sweep = client.sweep_ref(sweep_id).wait(timeout) if wait else client.sweep(sweep_id)
        columns = _columns(client, sweep)
    if unknown := set(metric or ()) - {column.name for column in columns}:
        names = ", ".join(column.name for column in columns)
        raise Usage(f"no job of this sweep measured {', '.join(sorted(unknown))}: choose among {names}")
    chosen = [next(column for column in columns if column.name == name) for name in metric or ()] or columns
    if of is Of.RATIO:
        chosen = [replace(column, unit="ratio") for column in chosen]
    found = paper(sweep.parameters, sweep.children, chosen, of.value)
    if not metric:
        found = found.narrowed()
    if as_json:
        output.print_json({"sweep_id": sweep.id, **found.as_json()})
    else:
        sys.stdout.write(_text(found, sweep, format_))


def _text(found: Paper, sweep: Sweep, format_: Format) -> str:
    match format_:
        case Format.MD:
            return markdown(found)
        case Format.CSV:
            return comma_separated(found)
        case Format.LATEX:
            spread = "Mean ± standard deviation over seeds; the" if found.several_seeds else "The"
            caption = f"{sweep.name or 'Comparison'}. {spread} best values are bold."
            return latex(found, caption, f"tab:{sweep.id}")


def _columns(client: Client, sweep: Sweep) -> list[Column]:
    """The measurements of its jobs, described as the report of the first that has succeeded does."""
    succeeded = [child.job_id for child in sweep.children if child.status == "succeeded" and child.job_id]
    if not succeeded:
        raise Usage(f"no job of {sweep.id} has succeeded, so there is nothing to tell: --wait waits for them")
    names = list(dict.fromkeys(name for child in sweep.children for name in child.metrics or {}))
    known = {metric.name: metric for metric in client.job_ref(succeeded[0]).report().metrics}
    return [
        Column(name, known[name].unit, known[name].higher_is_better) if name in known else Column(name, "", None)
        for name in names
    ]
