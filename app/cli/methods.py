"""`methods`: what can be asked for."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from app.capabilities.schemas import capabilities
from app.cli import output
from app.cli.options import AsJson, connect


def methods(
    context: typer.Context,
    remote: Annotated[bool, typer.Option(help="Ask the service instead of this installation.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the compression methods, by stage."""
    if remote:
        with connect(context) as service:
            found = service.get("/v1/capabilities")
    else:
        found = capabilities().model_dump()
    if as_json:
        output.print_json(found)
        return
    table = output.table("", "stage", "method", "what it does", "paper")
    for stage in found["stages"]:
        for method in stage["methods"]:
            table.add_row(stage["stage"], method["name"], escape(method["summary"]), escape(method["paper"]))
    output.stdout.print(table)
