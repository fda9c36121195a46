"""`methods`: what can be asked for, and every parameter of it."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.padding import Padding
from typer.core import TyperGroup

from app.capabilities.reference import REQUIRED, parameters
from app.cli import output
from app.cli.exits import Usage
from app.cli.options import AsJson, connect
from workers.engine.method_packages import VARIABLE


class ShownByDefault(TyperGroup):
    """A group whose command `show` is meant where none is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        asks_for_help = any(arg in ctx.help_option_names for arg in args[:1])
        return super().parse_args(ctx, args if asks_for_help or args[:1] in (["new"], ["show"]) else ["show", *args])


def show(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            help="A method: show its parameters. Also a stage, or another field of a spec: calibrate, gates, …"
        ),
    ] = None,
    remote: Annotated[bool, typer.Option(help="Ask the service instead of this installation.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the compression methods by stage, or show one of them with its parameters, their defaults and ranges."""
    if remote:
        with connect(context) as client:
            found = client.capabilities().raw
    else:
        from app.capabilities.schemas import capabilities

        found = capabilities().model_dump()
    if name is not None:
        found = _named(found, name)
    if as_json:
        output.print_json(found)
    elif name is None:
        _print_list(found["stages"])
        output.stdout.print(
            output.marked(
                "\n[bold]Other fields of a spec[/]: {}", ", ".join(field["name"] for field in found["fields"])
            )
        )
        output.stdout.print("espalier methods NAME shows the parameters of a method, or of such a field")
        for one in found["refused"]:
            output.stdout.print(
                f"Not in use: {one['stage']} {one['name']} of {one['origin']}, a package that {VARIABLE} does not name"
            )
    elif found["methods"] or found["fields"]:
        for method in found["methods"]:
            _print_method(method)
        for field in found["fields"]:
            output.stdout.print(output.marked("[bold]{}[/]  {}", field["name"], field["summary"]))
            _print_parameters(field["parameters"])
    else:
        _print_list(found["stages"])


def _named(found: dict[str, Any], name: str) -> dict[str, Any]:
    """The capabilities called `name`: methods, a stage, a field. Raises Usage where there are none."""
    from app.http.suggest import did_you_mean

    stages = [stage for stage in found["stages"] if stage["stage"] == name]
    fields = [field for field in found["fields"] if field["name"] == name]
    methods = [
        {"stage": stage["stage"], **method}
        for stage in found["stages"]
        for method in stage["methods"]
        if method["name"] == name
    ]
    if not (stages or fields or methods):
        known = [method["name"] for stage in found["stages"] for method in stage["methods"]]
        known += [each["stage"] for each in found["stages"]] + [each["name"] for each in found["fields"]]
        raise Usage(f"there is no method {name}{did_you_mean(name, known)}: `espalier methods` lists them")
    return {"stages": stages, "methods": methods, "fields": fields}


def _print_list(stages: list[dict[str, Any]]) -> None:
    table = output.table("", "stage", "method", "what it does", "paper")
    for stage in stages:
        for method in stage["methods"]:
            table.add_row(stage["stage"], method["name"], method["summary"], method["paper"])
    output.stdout.print(table)


def _print_method(method: dict[str, Any]) -> None:
    output.stdout.print(output.marked("[bold]{} {}[/]  {}", method["stage"], method["name"], method["paper"]))
    output.stdout.print(method["summary"])
    if method["origin"]:
        output.stdout.print(f"from: {method['origin']}")
    for what in ("units", "patterns", "needs"):
        if method[what]:
            output.stdout.print(f"{what}: {', '.join(method[what])}")
    if method["score"]:
        output.stdout.print(f"score: {method['score']}")
    _print_parameters(method["parameters"])


def _print_parameters(schema: dict[str, Any]) -> None:
    rows = parameters(schema)
    if not rows:
        output.stdout.print("It has no parameters.")
        return
    for row in rows:  # no table: five columns do not fit a terminal
        default = row.default if row.default == REQUIRED else f"default {row.default}"
        kind = ", ".join(filter(None, (row.type, row.range)))
        output.stdout.print(output.marked("  [bold]{}[/]  {}; {}", row.name, kind, default))
        output.stdout.print(Padding(row.description, (0, 0, 0, 6), expand=False), soft_wrap=False)
