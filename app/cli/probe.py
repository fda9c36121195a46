"""`espalier probe`: for the health checks of containers, whatever the number of the process in them."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from app.cli import output
from app.cli.exits import CliError
from app.cli.extras import needs
from app.cli.options import AsJson, load_settings


@needs("api")
def probe(
    role: Annotated[Literal["worker", "reconciler"], typer.Argument(help="The API has /livez and /readyz.")],
    within: Annotated[float, typer.Option(min=1, help="Seconds.")] = 60,
    as_json: AsJson = False,
) -> None:
    """Exit with 0 if this host's worker or reconciler was at work just now, else with 1. Asks nobody else."""
    from app import alive

    silent_s = alive.silent_s(load_settings(), role)
    if silent_s is None:
        raise CliError(f"no {role} of this host has begun to work in this ESPALIER_WORK_DIR")
    if silent_s > within:
        raise CliError(f"the {role} has been silent for {silent_s:.0f} s")
    if as_json:
        output.print_json({"role": role, "silent_s": round(silent_s, 3)})
    else:
        output.stdout.print(f"the {role} was at work {silent_s:.0f} s ago")
