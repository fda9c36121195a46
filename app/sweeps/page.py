"""A sweep's comparison as one HTML page, in the style of the reports: no script, no request to anywhere."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from app.sweeps import figure as plot
from app.sweeps.schemas import Pareto
from workers.engine.reporting import wording
from workers.engine.reporting.short import short


def render(sweep: dict[str, Any], pareto: Pareto) -> str:
    """The page. `sweep` is a schemas.SweepSummary. Whatever its texts hold is shown as text."""
    return _environment().get_template("pareto.html").render(
        sweep=sweep,
        pareto=pareto,
        figure=plot.figure(pareto) if pareto.points else None,
        plot=plot,
        wording=wording,
        short=short,
        quantity=quantity,
    )  # fmt: skip


def quantity(value: float, unit: str) -> str:
    return wording.percent(value) if unit == "fraction" else wording.quantity(value, unit)


@cache
def _environment() -> Environment:
    return Environment(
        loader=ChoiceLoader([PackageLoader("app.sweeps"), PackageLoader("workers.engine.reporting", "templates")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
