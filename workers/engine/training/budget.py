"""How many parameters are gone when a training that decides on units ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workers.engine.contracts.training import Target


def parameters_going(target: Target, prunable: int) -> int:
    """Of the `prunable` parameters."""
    if target.going is None:
        return round(target.share * prunable)
    sizes = {(family.block, family.kind): family.unit_parameters for family in target.families}
    return sum(target.going[key] * size for key, size in sizes.items())
