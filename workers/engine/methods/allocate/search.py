"""Search: measures what each block's sparsity does to the loss, then solves for the best spread. Our own method.

Around an allocation (first the uniform one) each block in turn is pruned a little less and a little more while the
others stay, which gives a curve of the loss over its sparsity. The curves, made convex, are minimised together under
the global budget by a linear program; its solution is tried, together with the ways halfway to it, and the best of
them is where the next round starts, with smaller steps. Measuring around the target and not around the dense model is
what makes it hold at high sparsity: blocks that are harmless alone are not when the others are pruned too. Steps of
linear programs within shrinking bounds are Griffith and Stewart's (1961, doi:10.1287/mnsc.7.4.379).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import MethodParams, Stat
from workers.engine.maths.spreading import MOST, parameters, shifted
from workers.engine.registry import allocator

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from workers.engine.architectures.architecture import LinearFacts
    from workers.engine.contracts.facts import AllocationFacts

WAYS = (1.0, 0.5, 0.25)
"""Fractions of the way to a linear program's solution that are tried: each curve was measured with one block moving."""


class SearchParams(MethodParams):
    """Spread sparsity by what it does to the loss of calibration text."""

    method: Literal["search"] = Field(
        "search", description="Measure how the loss answers to each block's sparsity, and solve for the best spread."
    )
    radius: float = Field(
        0.12, gt=0, le=0.5, description="How far from its present sparsity a block is measured, and moved, in a round."
    )
    rounds: int = Field(
        3,
        ge=1,
        le=10,
        description="Each measures every unit at two sparsities; the radius halves from one to the next.",
    )
    granularity: Literal["block", "stream"] = Field(
        "stream",
        description="What shares one sparsity: all layers of a block, or those that read one input (q, k, v; o; gate, "
        "up; down). The finer finds more and takes four times as long.",
    )

    def trials(self, streams: int) -> float:
        units = streams if self.granularity == "stream" else streams / 4
        return self.rounds * (units + len(WAYS))  # two a unit, each of half the model on average


@allocator(SearchParams, paper="doi:10.1287/mnsc.7.4.379", needs=Stat.LOSS)
def allocate(facts: AllocationFacts, sparsity: float, params: SearchParams) -> Mapping[str, float]:
    """Never worse than uniform on the text it is measured on. Deterministic.

    Takes rounds * (2 * units + 3) trial prunings, each of half the model on average.
    """
    trial = needed(facts.loss, "Stat.LOSS")
    units = _units(facts.layers, params.granularity)
    weights = [parameters(unit) for unit in units]

    def by_layer(spread: Sequence[float]) -> dict[str, float]:
        return {layer.name: s for s, unit in zip(spread, units, strict=True) for layer in unit}

    def loss(spread: Sequence[float]) -> float:
        return trial(by_layer(spread))

    best = [sparsity] * len(weights)
    best_loss = loss(best)
    radius = min(params.radius, sparsity, MOST - sparsity) if sparsity < MOST else 0.0
    for _ in range(params.rounds if radius > 0 else 0):
        curves: list[list[tuple[float, float]]] = [[] for _ in weights]
        # From the last unit to the first: what lies before the one at hand is the same as in the trial before.
        for unit in reversed(range(len(weights))):
            points = {best[unit]: best_loss}
            for moved in (max(0.0, best[unit] - radius), min(MOST, best[unit] + radius)):
                points[moved] = loss([*best[:unit], moved, *best[unit + 1 :]])
            curves[unit] = _convex(sorted(points.items()))
        goal = _minimised(curves, weights, sparsity)
        start = best
        for way in WAYS:
            between = [s + way * (g - s) for s, g in zip(start, goal, strict=True)]
            tried = shifted(between, weights, sparsity)
            if (found := loss(tried)) < best_loss:
                best, best_loss = tried, found
        radius /= 2
    return by_layer(best)


def _units(layers: Sequence[LinearFacts], granularity: str) -> list[list[LinearFacts]]:
    """Layers that share one sparsity, in the order of the forward pass."""
    units: dict[tuple[int, str], list[LinearFacts]] = {}
    for layer in layers:
        units.setdefault((layer.block, layer.stream if granularity == "stream" else ""), []).append(layer)
    return list(units.values())


def _convex(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The lower convex hull of (sparsity, loss) points in order of sparsity."""
    hull: list[tuple[float, float]] = []
    for x, y in points:
        while len(hull) > 1 and _above(hull[-1], hull[-2], (x, y)):
            hull.pop()
        hull.append((x, y))
    return hull


def _above(middle: tuple[float, float], left: tuple[float, float], right: tuple[float, float]) -> bool:
    """Whether the middle point is on or above the line through the others."""
    share = (middle[0] - left[0]) / (right[0] - left[0])
    return middle[1] >= left[1] + share * (right[1] - left[1])


def _minimised(curves: Sequence[Sequence[tuple[float, float]]], weights: Sequence[int], target: float) -> list[float]:
    """Sparsity of each block that minimises the sum of convex piecewise linear curves, weighted mean `target`.

    A block's sparsity is its curve's first point plus what it takes of each segment, cheapest segments first, which
    convexity sees to: a linear program.
    """
    from scipy.optimize import linprog

    total = math.fsum(weights)
    slopes, lengths, owners = [], [], []
    for block, curve in enumerate(curves):
        for (x0, y0), (x1, y1) in pairwise(curve):
            slopes.append((y1 - y0) / (x1 - x0))
            lengths.append(x1 - x0)
            owners.append(block)
    first = [curve[0][0] for curve in curves]
    budget = target * total - math.fsum(w * x for w, x in zip(weights, first, strict=True))
    row = [weights[owner] / total for owner in owners]
    solved = linprog(
        slopes, A_eq=[row], b_eq=[budget / total], bounds=[(0, length) for length in lengths], method="highs"
    )
    spread = list(first)
    for owner, taken in zip(owners, solved.x, strict=True):
        spread[owner] += float(taken)
    return spread
