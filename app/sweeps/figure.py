"""Positions of everything in the scatter plot of a sweep. The template draws them as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from app.sweeps.labels import Box, Label, place
from app.sweeps.schemas import Pareto, ParetoPoint
from workers.engine.reporting.wording import VERDICT_MARKS

WIDTH, HEIGHT = 960, 460
LEFT, RIGHT, TOP, BOTTOM = 84, 24, 24, 64
LABELLED = 40
"""With more points than this only those of the front are numbered."""
NOISE = 1e-9
"""Values that differ relatively by less are drawn as one: between two neighbouring floats there is no tick."""


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    point: ParetoPoint
    x_bar: tuple[float, float] | None
    """Two standard errors each way, where the value has one."""
    y_bar: tuple[float, float] | None
    label: Label | None


@dataclass(frozen=True)
class Figure:
    """In units of the view box, y downwards."""

    x_ticks: list[Tick]
    y_ticks: list[Tick]
    dots: list[Dot]
    front: str
    """`x,y x,y …` of the front's edge, from its cheapest point to its best; what lies behind it is beaten."""
    better: tuple[float, float]
    """The corner where nothing could be better."""
    dense: float | None
    """Height of the dense model's line."""


def figure(pareto: Pareto) -> Figure:
    """Cost to the right, quality upwards, both in their own direction; axes begin and end at round numbers."""
    assert pareto.quality is not None  # there are points
    assert pareto.cost is not None
    dense = pareto.quality.dense
    x_ticks = ticks([end for p in pareto.points for end in _ends(p.cost, p.cost_stderr)])
    heights = [end for p in pareto.points for end in _ends(p.quality, p.quality_stderr)]
    y_ticks = ticks(heights + ([] if dense is None else [dense]))

    def x(value: float) -> float:
        return LEFT + (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - TOP - BOTTOM)

    best_cost_first = sorted(
        (point for point in pareto.points if point.on_front),
        key=lambda point: point.cost,
        reverse=pareto.cost.higher_is_better,
    )
    edge = [(x(point.cost), y(point.quality)) for point in best_cost_first]
    stairs = [step for dot, after in pairwise(edge) for step in (dot, (after[0], dot[1]))]
    better = (
        WIDTH - RIGHT if pareto.cost.higher_is_better else LEFT,
        TOP if pareto.quality.higher_is_better else HEIGHT - BOTTOM,
    )
    places = [(x(point.cost), y(point.quality)) for point in pareto.points]
    taken = [_corner(better)] + ([] if dense is None else [dense_label(y(dense))])
    labels = place(_texts(pareto.points), places, taken, Box(LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM))
    return Figure(
        x_ticks=[Tick(x(value), number(value, x_ticks)) for value in x_ticks],
        y_ticks=[Tick(y(value), number(value, y_ticks)) for value in y_ticks],
        dots=[
            Dot(
                *at,
                point,
                x_bar=_bar(x, point.cost, point.cost_stderr),
                y_bar=_bar(y, point.quality, point.quality_stderr),
                label=label,
            )
            for at, point, label in zip(places, pareto.points, labels, strict=True)
        ],
        front=" ".join(f"{a:.1f},{b:.1f}" for a, b in [*stairs, *edge[-1:]]),
        better=better,
        dense=None if dense is None else y(dense),
    )


def _ends(value: float, stderr: float | None) -> tuple[float, ...]:
    return (value,) if stderr is None else (value - 2 * stderr, value + 2 * stderr)


def _bar(scale: Callable[[float], float], value: float, stderr: float | None) -> tuple[float, float] | None:
    if stderr is None:
        return None
    low, high = _ends(value, stderr)
    return scale(low), scale(high)


def _corner(better: tuple[float, float]) -> Box:
    """Position of the word `better`."""
    x, y = better
    left, top = (x - 76 if x > LEFT else x), (y if y == TOP else y - 26)
    return Box(left, top, left + 76, top + 26)


def dense_label(height: float) -> Box:
    """Position of the label of the dense model's line."""
    return Box(LEFT + 8, height - 18, LEFT + 52, height - 2)


def _texts(points: Sequence[ParetoPoint]) -> list[Sequence[str]]:
    """Labels that fit a point, the longest first: its number, the methods that differ, the mark of its verdict."""
    stages = list(dict.fromkeys(stage for point in points for stage in point.methods))
    differing = [stage for stage in stages if len({point.methods.get(stage) for point in points}) > 1] or stages[:1]
    texts: list[Sequence[str]] = []
    for point in points:
        mark = f" {VERDICT_MARKS[point.verdict]}" if point.verdict else ""
        named = " ".join(point.methods[stage] for stage in differing if stage in point.methods)
        both = (f"{point.number} {named}{mark}".replace("  ", " "), f"{point.number}{mark}")
        texts.append(both if len(points) <= LABELLED or point.on_front else ())
    return texts


def ticks(values: Sequence[float]) -> list[float]:
    """Three to eight round numbers around the values, no value on the first or the last."""
    low, high = min(values), max(values)
    size = max(abs(low), abs(high))
    spread = high - low if high - low > size * NOISE else size or 1.0
    raw = spread / 4
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first, last = math.floor(low / step - 0.1), math.ceil(high / step + 0.1)
    if last - first < 2:  # of one value
        first, last = first - 1, last + 1
    if low > 0 > first:  # what is never negative has no axis there
        first, last = 0, max(last, 2)
    return [number * step for number in range(first, last + 1)]


def number(value: float, all_ticks: Sequence[float]) -> str:
    """With as many decimals as tell the ticks apart."""
    step = all_ticks[1] - all_ticks[0]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if not math.isclose(step, round(step, decimals)):  # 2.5, 0.25
        decimals += 1
    for size, suffix in ((1e9, " G"), (1e6, " M")):
        if step >= size / 10 and abs(all_ticks[-1]) >= size:
            return f"{value / size:,.{1 if step < size else 0}f}{suffix}"
    return f"{value:,.{decimals}f}"
