"""Ranking: all heads and channels of the model in one order, the lowest go wherever they are (SAAP, arXiv:2412.15127).

Blocks end up with different widths. Scores of a kind are divided by their mean over the model, so that heads and
channels, which differ in size by two orders of magnitude, compete at the same level.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import MethodParams, Stat
from workers.engine.errors import InvalidSpec
from workers.engine.registry import allocator
from workers.engine.removals.widths import most_units

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workers.engine.contracts.facts import AllocationFacts


class RankingParams(MethodParams):
    """One order over all units, under the budget of the sparsity."""

    method: Literal["ranking"] = Field("ranking", description="Global ranking of heads and channels by their scores.")
    most: float = Field(
        0.8,
        gt=0,
        le=1,
        description="Largest fraction of a block's heads, and of its channels, that goes. One of each always stays.",
    )

    @property
    def most_of_units(self) -> float:
        return self.most


@allocator(RankingParams, paper="arXiv:2412.15127", needs=Stat.UNIT_SCORES)
def allocate(facts: AllocationFacts, sparsity: float, params: RankingParams) -> Mapping[str, float]:
    """Greedy: in order of score, every unit that fits into the budget and leaves its family enough.

    What is left of the budget then is less than a unit of any family that may lose more; it is added as a fraction to
    the first of the smallest families whose unit did not fit. Raises InvalidSpec where `most` does not let as much go.
    """
    units = needed(facts.units, "Stat.UNIT_SCORES")
    blocks = {layer.block for layer in facts.layers}
    families = [family for family in units.families if family.block in blocks]
    means = {
        kind: math.fsum(s for f in families if f.kind == kind for s in units.of(f))
        / max(1, sum(f.units for f in families if f.kind == kind))
        for kind in {family.kind for family in families}
    }
    order = sorted(
        (score / means[family.kind] if means[family.kind] else 0.0, index, unit)
        for index, family in enumerate(families)
        for unit, score in enumerate(units.of(family))
    )
    everything = sum(layer.parameters for layer in facts.layers)
    left = sparsity * everything
    removed = [0.0] * len(families)
    allowed = [most_units(family.units, params.most) for family in families]
    too_large = None
    for _, index, _ in order:
        if removed[index] == allowed[index]:
            continue
        if families[index].unit_parameters <= left:
            removed[index] += 1
            left -= families[index].unit_parameters
        elif too_large is None or families[index].unit_parameters < families[too_large].unit_parameters:
            too_large = index
    if too_large is not None:
        removed[too_large] += left / families[too_large].unit_parameters
    elif left > 1e-9 * everything:  # more than sums round
        raise InvalidSpec(
            f"`most` of {params.most:g} lets {1 - left / (sparsity * everything):.1%} of what is asked for go, "
            f"{sparsity - left / everything:.1%} of {sparsity:.1%}: one of each kind stays in every block",
            "raise `most`, lower the sparsity, let heads and channels go, or protect fewer blocks",
            field="/allocate/most",
        )
    share = {
        member.tensor: count / family.units
        for family, count in zip(families, removed, strict=True)
        for member in family.members
    }
    return {layer.name: share.get(layer.weight, 0.0) for layer in facts.layers}
