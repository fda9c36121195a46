"""Ranking: all heads and channels of the model in one order, the lowest go wherever they are (SAAP, arXiv:2412.15127).

Blocks end up with different widths. Scores of a kind are divided by their mean over the model, so that heads and
channels, which differ in size by two orders of magnitude, compete at the same level.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.registry import MethodParams, Stat, allocator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workers.engine.architectures.coupled import Kind
    from workers.engine.stats import AllocationFacts


class RankingParams(MethodParams):
    """One order over all units, under the budget of the sparsity."""

    method: Literal["ranking"] = Field("ranking", description="Global ranking of heads and channels by their scores.")
    most: float = Field(
        0.8,
        gt=0,
        le=1,
        description="Largest fraction of a block's heads, and of its channels, that goes. One of each always stays.",
    )


@allocator(RankingParams, paper="arXiv:2412.15127", needs=Stat.UNIT_SCORES)
def allocate(facts: AllocationFacts, sparsity: float, params: RankingParams) -> Mapping[str, float]:
    """Greedy: from the lowest score on, whatever still fits into the budget and leaves its family enough.

    The budget is met to within one channel, unless `most` stands in the way: then the rest is spread over all units.
    """
    assert facts.units is not None  # declared in `needs`
    blocks = {layer.block for layer in facts.layers}
    families = [family for family in facts.units.families if family.block in blocks]
    means = {
        kind: math.fsum(s for f in families if f.kind == kind for s in facts.units.of(f))
        / max(1, sum(f.units for f in families if f.kind == kind))
        for kind in {family.kind for family in families}
    }
    order = sorted(
        (score / means[family.kind] if means[family.kind] else 0.0, index, unit)
        for index, family in enumerate(families)
        for unit, score in enumerate(facts.units.of(family))
    )
    left = sparsity * sum(layer.parameters for layer in facts.layers)
    removed = [0] * len(families)
    allowed = [min(family.units - 1, int(params.most * family.units)) for family in families]
    for _, index, _ in order:
        if removed[index] < allowed[index] and families[index].unit_parameters <= left:
            removed[index] += 1
            left -= families[index].unit_parameters
    share = {(f.block, f.kind): count / f.units for f, count in zip(families, removed, strict=True)}
    spread = {layer.name: share.get((layer.block, _kind(layer.name)), 0.0) for layer in facts.layers}
    return _topped_up(spread, facts, sparsity)


def _kind(layer: str) -> Kind:
    return "head" if ".self_attn." in layer else "channel"


def _topped_up(spread: Mapping[str, float], facts: AllocationFacts, sparsity: float) -> Mapping[str, float]:
    """What the caps left over, and the fraction of a channel that did not fit, spread evenly over what remains."""
    total = sum(layer.parameters for layer in facts.layers)
    found = math.fsum(spread[layer.name] * layer.parameters for layer in facts.layers) / total
    rest = (sparsity - found) / (1 - found)
    return {name: share + rest * (1 - share) for name, share in spread.items()}
