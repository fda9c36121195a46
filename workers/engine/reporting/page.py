"""The report as one HTML page, without scripts or external requests, for screen (light and dark) and print."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from workers.engine.reporting import wording
from workers.engine.reporting.figures import loss_figure, metrics_figure, sparsity_figure, stages_figure, widths_figure

if TYPE_CHECKING:
    from workers.engine.report import Report, TrainingReport

_HEADLINES = 3


def render(report: Report) -> str:
    """The page. Texts of the report are escaped."""
    # Markup only around the figures, which escape their own texts; the template escapes everything else.
    directed = [metric for metric in report.metrics if metric.higher_is_better is not None]
    methods = wording.compressing_methods(report)
    kind = wording.edited(report)
    return _template().render(
        report=report,
        wording=wording,
        methods=methods,
        kind=kind,
        measured=all(layer.metric is not None for layer in report.layers),
        headlines=directed[:_HEADLINES],
        spec_json=json.dumps(report.spec, indent=2),
        sparsity_figure=Markup(sparsity_figure(report.layers) if kind.draws_sparsity else ""),
        widths_figure=Markup(widths_figure(report.layers) if kind.draws_widths else ""),
        metrics_figure=Markup(metrics_figure(directed, kind.result)) if directed else None,
        trainings=_trainings(report, kind.result),
        stages_figure=Markup(stages_figure(report.stages)),
    )


def _trainings(report: Report, result: str) -> list[tuple[str, TrainingReport, int, Markup]]:
    """Every training in the order of the job: its heading, figures, the step that ships, and its plot."""
    found: list[tuple[str, TrainingReport, int, Markup]] = []
    if (train := report.train) is not None:
        plot = loss_figure(train.curve, train.steps, train.holdout_loss_before, "dense")
        found.append(("Training", train, train.steps, Markup(plot)))
    if (tune := report.tune) is not None:
        plot = loss_figure(tune.curve, tune.best_step, tune.holdout_loss_before, result)
        found.append(("Tuning", tune, tune.best_step, Markup(plot)))
    return found


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("workers.engine.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")
