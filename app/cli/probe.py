"""`espalier probe`: for the health checks of containers, whatever the number of the process in them."""

from __future__ import annotations

from typing import Annotated, cast, get_args

import typer

from app import alive
from app.cli import output
from app.cli.exits import CliError, Usage
from app.cli.options import AsJson, load_settings


def probe(
    role: Annotated[str, typer.Argument(help="`worker` or `reconciler`; the API has /livez and /readyz.")],
    within: Annotated[float, typer.Option(min=1, help="Seconds.")] = alive.SILENT_S,
    as_json: AsJson = False,
) -> None:
    """Exit with 0 if this host's worker or reconciler was at work just now, else with 1. Asks nobody else."""
    if role not in get_args(alive.Role):
        raise Usage(f"{role} is none of {', '.join(get_args(alive.Role))}")
    silent_s = alive.silent_s(load_settings(), cast(alive.Role, role))
    if silent_s is None:
        raise CliError(f"no {role} of this host has begun to work in this ESPALIER_WORK_DIR")
    if silent_s > within:
        raise CliError(f"the {role} has been silent for {silent_s:.0f} s")
    if as_json:
        output.print_json({"role": role, "silent_s": round(silent_s, 3)})
    else:
        output.stdout.print(f"the {role} was at work {silent_s:.0f} s ago")
