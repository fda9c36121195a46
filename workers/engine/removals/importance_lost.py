"""Importance lost with one shape for all blocks and with different ones, as shares of all scores. Import-light."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from workers.engine.contracts.facts import AllocationFacts
from workers.engine.contracts.params import Stat
from workers.engine.errors import InvalidSpec, NumericalFailure
from workers.engine.registry import methods
from workers.engine.removals.base import removal_of
from workers.engine.removals.widths import UnitPruneParams, kept_units

if TYPE_CHECKING:
    from workers.engine.architectures.architecture import Architecture
    from workers.engine.contracts.facts import Units
    from workers.engine.removals.narrow_blocks import NarrowBlocks
    from workers.engine.removals.widths import Widths
    from workers.engine.spec import CompressionSpec


def importance_lost(
    spec: CompressionSpec,
    params: UnitPruneParams,
    architecture: Architecture,
    units: Units,
    outcome: NarrowBlocks,
    sparsity: float,
) -> tuple[float, float] | None:
    """Share of all importance that the removed units had, and that they would have had under `ranking`, in [0, 1].

    Importance is a score over its kind's mean, as `ranking` compares them, times the parameters of the unit. For a
    number of parameters, the least is lost by removing the lowest scores first, as `ranking` does. None where the
    scores, or the blocks, do not allow another spread of `sparsity`.
    """
    if not _all_positive(units):
        return None
    ranks = next(method for method in methods("allocate") if Stat.UNIT_SCORES in method.needs)
    ranking = ranks.params()  # type: ignore[call-arg]
    facts = AllocationFacts(architecture.layers, {}, units=units.of_kinds(params.units))
    try:
        other = removal_of(spec).spread(spec.model_copy(update={"allocate": ranking}), facts, sparsity)
        widths = kept_units(architecture.layers, units.families, other, params, ranking)
    except (InvalidSpec, NumericalFailure):
        return None
    return _lost(units, outcome.widths), _lost(units, widths)


def _all_positive(units: Units) -> bool:
    """Whether scores are such that shares of their sum are defined."""
    of_kinds = [units.of(family) for family in units.families]
    return all(min(scores) >= 0 for scores in of_kinds) and all(max(scores) > 0 for scores in of_kinds)


def _lost(units: Units, widths: Widths) -> float:
    lost = total = 0.0
    for kind in {family.kind for family in units.families}:
        families = [family for family in units.families if family.kind == kind]
        everything = math.fsum(score for family in families for score in units.of(family))
        size = sum(family.units * family.unit_parameters for family in families)
        gone = math.fsum(s for f in families for s in sorted(units.of(f))[: f.units - widths[f.block, f.kind]])
        lost += gone / everything * size
        total += size
    return lost / total
