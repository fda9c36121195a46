"""Sparsity spread over units of different sizes so that bounds hold and the weighted mean is exact. Import-light.

A unit is whatever shares one sparsity: a block, a layer. `wanted` is in any unit of measure; `weights` are parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workers.engine.architectures.architecture import LinearFacts

MOST = 0.99
"""Highest sparsity of a unit, unless the target itself is higher: a layer of zeros passes nothing on."""


def scaled(
    wanted: Sequence[float], weights: Sequence[float], target: float, *, least: float = 0.0, most: float = MOST
) -> list[float]:
    """`c * wanted` cut to [least, most], with c such that the weighted mean is `target`: AlphaPruning's map,
    with bounds. A bound that excludes the target is moved to it.

    `wanted` must be >= 0, and positive somewhere where the target is. Keeps the order of `wanted`.
    """
    if max(wanted) <= 0:
        return [target] * len(wanted)
    least, most = min(least, target), max(most, target)
    # A unit with `wanted` 0 gets 0. Where only such units have room left, the mean would stay below the target.
    high = most / min(w for w in wanted if w > 0)
    return _filled(lambda c, want: min(most, max(least, c * want)), wanted, weights, target, high=high)


def shifted(wanted: Sequence[float], weights: Sequence[float], target: float, *, most: float = MOST) -> list[float]:
    """`wanted + c` cut to [0, most], with c such that the weighted mean is `target`: OWL's map, with bounds."""
    most = max(most, target)
    low, high = -max(wanted), most - min(wanted)
    return _filled(lambda c, want: min(most, max(0.0, want + c)), wanted, weights, target, low=low, high=high)


def shifted_blocks(blocks: Sequence[Sequence[LinearFacts]], wanted: Sequence[float], target: float) -> dict[str, float]:
    """As `shifted`, one sparsity for all layers of each block. Layer name -> sparsity."""
    found = shifted(wanted, [parameters(block) for block in blocks], target)
    return {layer.name: sparsity for block, sparsity in zip(blocks, found, strict=True) for layer in block}


def by_block(layers: Sequence[LinearFacts]) -> list[list[LinearFacts]]:
    """The layers of each decoder block, first block first."""
    blocks: dict[int, list[LinearFacts]] = {}
    for layer in layers:
        blocks.setdefault(layer.block, []).append(layer)
    return [blocks[block] for block in sorted(blocks)]


def parameters(layers: Sequence[LinearFacts]) -> int:
    return sum(layer.parameters for layer in layers)


def in_unit_range(values: Sequence[float]) -> list[float]:
    """Moved and scaled to [0, 1]; all 0 where all are equal, which asks for a uniform spread."""
    lowest, highest = min(values), max(values)
    if highest == lowest:
        return [0.0] * len(values)
    return [(value - lowest) / (highest - lowest) for value in values]


def _filled(
    value: Callable[[float, float], float],
    wanted: Sequence[float],
    weights: Sequence[float],
    target: float,
    *,
    low: float = 0.0,
    high: float,
) -> list[float]:
    """Bisection on the level c; the mean does not fall as c grows. 200 halvings end at neighbouring floats."""
    total = math.fsum(weights)

    def mean(c: float) -> float:
        return math.fsum(w * value(c, want) for want, w in zip(wanted, weights, strict=True)) / total

    if mean(low) >= target:  # so that a target of zero gives exact zeros
        high = low
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if mean(middle) < target else (low, middle)
    return [value(high, want) for want in wanted]
