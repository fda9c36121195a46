"""`report`: what a job did, before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from app.cli import output
from app.cli.exits import Usage
from app.cli.options import AsJson, JobId, connect


def report(
    context: typer.Context,
    job_id: JobId,
    html: Annotated[Path | None, typer.Option(help="Write the page with the plots to this file instead.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a job's report: before and after, sparsity, time and memory."""
    with connect(context) as client:
        job = client.job_ref(job_id)
        if html is None:
            found = job.report().raw
            output.print_json(found) if as_json else print_report(found)
            return
        page = job.report_page()
    try:
        html.write_bytes(page)
    except OSError as error:
        raise Usage(f"{html}: {error.strerror}") from error
    if as_json:
        output.print_json({"id": job_id, "html": str(html.absolute())})
    else:
        output.stdout.print(f"report: {html.absolute().as_uri()}")


def print_report(report: dict[str, Any]) -> None:
    provenance = report["provenance"]
    after = report.get("parameters_after") or report["parameters"]  # a report may be older than that
    if after < report["parameters"]:
        what = f"{after:,} of {report['parameters']:,} parameters left ({report['sparsity']:.2%} removed)"
    elif after > report["parameters"]:
        what = f"{after:,} parameters, {report['parameters']:,} before"
    else:
        zeros = f"{report['zeros']:,} of {report['prunable_parameters']:,} prunable weights zero"
        what = f"{zeros} ({report['sparsity']:.2%} removed)"
    output.stdout.print(output.marked("[bold]{}[/] with {}", provenance["model_id"], what))
    output.stdout.print(metrics_table(report["metrics"]))
    for sample in report.get("samples", []):
        output.stdout.print(samples_text(sample))
    if gates := report.get("gates"):  # a report may be older than they are
        output.stdout.print(gates_table(gates))
        output.stdout.print(output.marked("verdict: {}", output.verdict_text(report["verdict"])))
    stages = output.table("", "stage", "seconds", "peak memory", right=("seconds", "peak memory"))
    for stage in report["stages"]:
        stages.add_row(stage["stage"], f"{stage['elapsed_s']:.2f}", f"{stage['peak_memory_bytes'] / 2**20:,.0f} MiB")
    output.stdout.print(stages)
    for runtime in report["runtimes"]:
        output.stdout.print(f"{runtime['runtime']}: {runtime['note']}")
    for warning in report["warnings"]:
        output.stdout.print(output.marked("[yellow]warning[/] {}", warning))


def metrics_table(metrics: list[dict[str, Any]]) -> Table:
    """Before and after; `metrics` are a report's, or a job's with their name."""
    numbers = ("dense", "pruned", "ratio")
    table = output.table("", "metric", *numbers, "unit", right=numbers)
    for metric in metrics:
        ratio = metric["ratio"]
        table.add_row(
            metric["name"],
            _with_spread(metric["dense"], metric.get("dense_stderr")),
            _with_spread(metric["pruned"], metric.get("pruned_stderr")),
            "" if ratio is None else f"{ratio:.3f}",
            metric["unit"],
        )
    return table


def samples_text(sample: dict[str, Any]) -> Text:
    """Texts that both models generated from one prompt."""
    plain = {who: " ".join(sample[who].split()) for who in ("prompt", "dense", "pruned")}
    plain = {who: "".join(filter(str.isprintable, text)) for who, text in plain.items()}  # a model may write anything
    return Text().join(output.marked("[bold]{}[/]{}\n", f"{who:8}", text) for who, text in plain.items())


def gates_table(gates: list[dict[str, Any]]) -> Table:
    """The verdicts of a report's gates."""
    from workers.engine.report import GateResult
    from workers.engine.reporting import wording

    table = output.table("", "gate", "of", "allowed", "value [interval]", "verdict", "why", right=("value [interval]",))
    for found in gates:
        gate = GateResult.model_validate(found)
        table.add_row(
            gate.metric,
            wording.GATED[gate.of],
            wording.bounds(gate),
            wording.judged_value(gate),
            output.verdict_text(gate.verdict),
            gate.reason,
        )
    return table


def _with_spread(value: float, spread: float | None) -> str:
    """`116.15 ± 11.02`: the spread to the decimals of the value."""
    shown = output.number(value)
    return shown if spread is None else f"{shown} ± {spread:,.{len(shown.partition('.')[2])}f}"
