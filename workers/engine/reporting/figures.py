"""The report's plots as inline SVG, drawn by matplotlib; the same report gives the same bytes.

Colours are written as CSS variables and text as text, so that the page decides on light or dark and on the font, and
a reader can search the labels.
"""

from __future__ import annotations

import io
import math
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from workers.engine.reporting.wording import quantity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from workers.engine.report import LayerReport, Metric, StageReport, TunePoint

# Placeholders that matplotlib accepts as colours; `_svg` replaces them by the page's CSS variables.
INK, FAINT, DENSE, PRUNED = "#010101", "#020202", "#030303", "#040404"
_VARIABLES = {INK: "var(--ink)", FAINT: "var(--faint)", DENSE: "var(--dense)", PRUNED: "var(--pruned)"}

_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}
_COLUMNS = 4
_DOMAINS_SHOWN = 8
"""More lines than that cannot be told apart; the sentence above has all of them."""


def sparsity_figure(layers: Sequence[LayerReport]) -> str:
    """Sparsity over blocks, one panel per projection; the allocation's target beside what was removed."""
    by_projection: dict[str, list[LayerReport]] = defaultdict(list)
    for layer in layers:
        by_projection[layer.name.rpartition(".")[2]].append(layer)
    columns = min(_COLUMNS, len(by_projection))
    rows = -(-len(by_projection) // columns)
    with rc_context(_STYLE):
        figure = Figure(figsize=(9.6, 0.9 + 1.7 * rows))
        axes = _panels(figure, rows, columns, left=0.6, bottom=0.5, top=0.55, sharex=True, sharey=True)
        for axis, (projection, members) in zip(axes, by_projection.items(), strict=False):
            blocks = [layer.block for layer in members]
            target = [100 * layer.target_sparsity for layer in members]
            axis.bar(blocks, [100 * layer.sparsity for layer in members], width=0.7, color=PRUNED, label="removed")
            axis.plot(blocks, target, "_", markersize=11, markeredgewidth=1.6, color=INK, label="target")
            axis.set_title(projection)
            axis.grid(axis="y")
        axes[0].set_ylim(0, 100)  # all panels share these
        axes[0].set_yticks([0, 25, 50, 75, 100])
        axes[0].locator_params(axis="x", integer=True)
        for axis in axes[len(by_projection) :]:
            axis.remove()
        for index in range(len(by_projection)):
            if index + columns >= len(by_projection):  # nothing below it
                axes[index].tick_params(labelbottom=True)
        figure.supxlabel("decoder block", fontsize=10)
        figure.supylabel("weights removed, %", fontsize=10, x=0.005)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="upper right", ncols=2)
        return _svg(figure, "Sparsity of every pruned layer by block, one panel per projection, with its target")


def widths_figure(layers: Sequence[LayerReport]) -> str:
    """Inputs of the layers that read heads and channels over blocks, dense and pruned; empty where no layer was cut,
    none of a kind is left, or the report does not name those layers."""
    panels = {"head": "attention", "channel": "MLP"}
    uncut = all(math.prod(layer.shape) == layer.parameters for layer in layers)
    if uncut or not {*panels} <= {layer.reads for layer in layers if layer.shape[0]}:
        return ""
    with rc_context(_STYLE):
        figure = Figure(figsize=(9.6, 3.0))
        axes = _panels(figure, 1, len(panels), left=0.6, bottom=0.5, top=0.55, gap=0.6)
        for axis, (kind, part) in zip(axes, panels.items(), strict=True):
            members = [layer for layer in layers if layer.reads == kind]
            hidden = max(layer.shape[0] for layer in members)  # outputs stay, but for blocks that were dropped
            blocks = [layer.block for layer in members]
            dense = [layer.parameters // hidden for layer in members]
            axis.bar(blocks, dense, width=0.8, color=DENSE, label="dense")
            axis.bar(blocks, [layer.shape[1] for layer in members], width=0.6, color=PRUNED, label="pruned")
            axis.set_title(f"{part}: inputs of {members[0].name.rpartition('.')[2]}")
            axis.grid(axis="y")
            axis.locator_params(axis="x", integer=True)
        figure.supxlabel("decoder block", fontsize=10)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="upper right", ncols=2)
        return _svg(figure, "Width of attention and MLP in every block, dense and pruned")


def metrics_figure(metrics: Sequence[Metric], result: str) -> str:
    """Dense model and result (`pruned`) side by side, one panel per unit, with the spread as error bars."""
    by_unit: dict[str, list[Metric]] = defaultdict(list)
    for metric in metrics:
        by_unit[metric.unit].append(metric)
    with rc_context(_STYLE):
        sizes = [len(members) for members in by_unit.values()]
        figure = Figure(figsize=(9.6, 0.5 + 0.62 * sum(sizes) + 0.5 * len(sizes)), layout="constrained")
        axes = figure.subplots(len(sizes), 1, height_ratios=sizes, squeeze=False).flatten()
        for axis, (unit, members) in zip(axes, by_unit.items(), strict=True):
            rows = range(len(members))
            dense, pruned = [metric.dense for metric in members], [metric.pruned for metric in members]
            _bars(axis, [row - 0.2 for row in rows], dense, [m.dense_stderr for m in members], unit, DENSE, "dense")
            _bars(axis, [row + 0.2 for row in rows], pruned, [m.pruned_stderr for m in members], unit, PRUNED, result)
            axis.set_yticks(list(rows), [metric.name for metric in members])
            axis.set_ylim(len(members) - 0.5, -0.5)
            ends = (m + (e or 0) for x in members for m, e in ((x.dense, x.dense_stderr), (x.pruned, x.pruned_stderr)))
            axis.set_xlim(0, 1.25 * max(*ends, 1e-12))
            axis.set_title(unit)
            axis.spines["bottom"].set_visible(False)
            axis.set_xticks([])
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
        return _svg(
            figure, f"Measurements of the dense and the {result} model as bars; the table above has the numbers"
        )


def loss_figure(looks: Sequence[TunePoint], ships: int, before: float, model: str) -> str:
    """Held-out and training loss over the steps of a training. `ships`: the step whose weights do; `before`: held-out
    loss of the model (`dense`, `pruned`) that was trained."""
    trained = [(point.step, point.train_loss) for point in looks if point.train_loss is not None]
    with rc_context(_STYLE):
        figure = Figure(figsize=(9.6, 3.2), layout="constrained")
        axis = figure.subplots()
        axis.axhline(before, color=FAINT, linestyle="--", label=f"{model}, held out")
        axis.plot([step for step, _ in trained], [loss for _, loss in trained], color=DENSE, label="training")
        axis.plot([p.step for p in looks], [p.holdout_loss for p in looks], "o-", color=PRUNED, ms=4, label="held out")
        domains = looks[0].domains or {}
        for name in domains if len(domains) <= _DOMAINS_SHOWN else ():
            losses = [(point.step, (point.domains or {})[name]) for point in looks]
            axis.plot(*zip(*losses, strict=True), ":", label=f"{name}, held out")
        best = next(point for point in looks if point.step == ships)
        axis.plot([best.step], [best.holdout_loss], "o", color=INK, ms=7, label="ships")
        axis.set_xlabel("step")
        axis.set_ylabel("loss, nats a token")
        axis.grid(axis="y")
        axis.locator_params(axis="x", integer=True)
        figure.legend(loc="outside upper right", ncols=4)
        return _svg(figure, "Loss on held-out and on training windows over the steps")


def stages_figure(stages: Sequence[StageReport]) -> str:
    """Time and peak memory of each stage."""
    names = [stage.stage for stage in stages]
    panels: list[tuple[str, str, list[float]]] = [
        ("time", "s", [stage.elapsed_s for stage in stages]),
        ("peak memory of the process so far", "bytes", [stage.peak_memory_bytes for stage in stages]),
    ]
    device = [stage.device_peak_memory_bytes for stage in stages]
    if any(value is not None for value in device):
        panels.append(("peak GPU memory", "bytes", [value or 0 for value in device]))
    with rc_context(_STYLE):
        figure = Figure(figsize=(9.6, 0.5 + 0.36 * len(stages)))
        axes = _panels(figure, 1, len(panels), left=0.9, bottom=0.1, top=0.35, sharey=True)
        for axis, (title, unit, values) in zip(axes, panels, strict=True):
            _bars(axis, list(range(len(names))), values, [None] * len(names), unit, PRUNED, title, height=0.6)
            axis.set_yticks(range(len(names)), names)
            axis.set_ylim(len(names) - 0.5, -0.5)
            axis.set_xlim(0, 1.35 * max(*values, 1e-12))
            axis.set_title(title)
            axis.spines["bottom"].set_visible(False)
            axis.set_xticks([])
        return _svg(figure, "Elapsed time and peak memory of each stage")


def _panels(
    figure: Figure, rows: int, columns: int, *, left: float, bottom: float, top: float, gap: float = 0.12, **shared: Any
) -> list[Axes]:
    """Panels in rows, below titles; the gap between them and the margins in inches. Given, because matplotlib's
    `constrained` layout, which finds them, draws a figure three times: as long as a job of a small model."""
    width, height = figure.get_size_inches()
    across, down = (width - left - 0.05) / columns, (height - bottom - top) / rows
    place = {
        "left": left / width,
        "right": 1 - 0.05 / width,
        "bottom": bottom / height,
        "top": 1 - top / height,
        "wspace": gap / (across - gap),
        "hspace": 0.35 / (down - 0.35),
    }
    return list(figure.subplots(rows, columns, squeeze=False, gridspec_kw=place, **shared).flatten())


def _bars(
    axis: Axes,
    rows: Sequence[float],
    values: Sequence[float],
    spreads: Sequence[float | None],
    unit: str,
    color: str,
    label: str,
    height: float = 0.36,
) -> None:
    """Horizontal bars with their value written after them."""
    errors = [spread or 0 for spread in spreads]
    style: dict[str, Any] = {"xerr": errors, "error_kw": {"ecolor": INK, "elinewidth": 1}} if any(errors) else {}
    axis.barh(rows, values, height=height, color=color, label=label, **style)
    for row, value, error in zip(rows, values, errors, strict=True):
        axis.annotate(
            quantity(value, unit), (value + error, row), xytext=(5, 0), textcoords="offset points", va="center"
        )


_LONG = re.compile(r"\d+\.\d{3,}")
"""Numbers with more decimals than show: a figure is 700 pixels wide."""


def _svg(figure: Figure, label: str) -> str:
    """The figure as an `<svg>` element that scales with the page, labelled for screen readers."""
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.hashsalt": label}):  # names differ between the figures of a page, not between runs
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    svg = buffer.getvalue()
    opening = re.search(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', svg)
    assert opening is not None
    svg = f'<svg viewBox="{opening[1]}" role="img" aria-label="{label}">' + svg[opening.end() :].strip()
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would style the whole page
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)  # names of groups, the same in every figure, referred to by none
    svg = re.sub(r"font-family: [^;\"]*;?", "", svg).replace("xlink:href", "href")
    svg = re.sub(r"<[^>]*>", lambda tag: _LONG.sub(lambda number: f"{float(number[0]):.2f}", tag[0]), svg)
    svg = re.sub(r"\s+", " ", svg).replace("> <", "><")
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    return svg
