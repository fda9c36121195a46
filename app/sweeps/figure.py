"""Where things lie in the scatter plot of a sweep. The template draws them; nothing here knows of SVG's elements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from app.sweeps.schemas import Pareto, ParetoPoint

WIDTH, HEIGHT = 960, 460
LEFT, RIGHT, TOP, BOTTOM = 84, 24, 24, 64
LABELLED = 40
"""With more points than this only those of the front are numbered."""


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    point: ParetoPoint
    label: str


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


def figure(pareto: Pareto) -> Figure:
    """Cost to the right, quality upwards, both in their own direction; axes begin and end at round numbers."""
    assert pareto.quality is not None  # there are points
    assert pareto.cost is not None
    x_ticks = ticks([point.cost for point in pareto.points])
    y_ticks = ticks([point.quality for point in pareto.points])

    def x(value: float) -> float:
        return LEFT + (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - TOP - BOTTOM)

    labelled = len(pareto.points) <= LABELLED
    best_cost_first = sorted(
        (point for point in pareto.points if point.on_front),
        key=lambda point: point.cost,
        reverse=pareto.cost.higher_is_better,
    )
    edge = [(x(point.cost), y(point.quality)) for point in best_cost_first]
    stairs = [step for dot, after in pairwise(edge) for step in (dot, (after[0], dot[1]))]
    return Figure(
        x_ticks=[Tick(x(value), number(value, x_ticks)) for value in x_ticks],
        y_ticks=[Tick(y(value), number(value, y_ticks)) for value in y_ticks],
        dots=[Dot(x(p.cost), y(p.quality), p, str(p.number) if labelled or p.on_front else "") for p in pareto.points],
        front=" ".join(f"{a:.1f},{b:.1f}" for a, b in [*stairs, *edge[-1:]]),
        better=(
            WIDTH - RIGHT if pareto.cost.higher_is_better else LEFT,
            TOP if pareto.quality.higher_is_better else HEIGHT - BOTTOM,
        ),
    )


def ticks(values: Sequence[float]) -> list[float]:
    """Three to eight round numbers around the values, no value on the first or the last."""
    low, high = min(values), max(values)
    spread = (high - low) or abs(high) or 1.0
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
