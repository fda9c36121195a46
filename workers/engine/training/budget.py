"""How many parameters are gone when a training that decides on units ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.engine.errors import InvalidSpec

if TYPE_CHECKING:
    from workers.engine.contracts.training import Target


def parameters_going(target: Target, prunable: int) -> int:
    """Of the `prunable` parameters. Raises InvalidSpec where one unit of each family cannot stay."""
    sizes = {(family.block, family.kind): family.unit_parameters for family in target.families}
    if target.going is not None:
        return sum(target.going[key] * size for key, size in sizes.items())
    able = sum((family.units - 1) * family.unit_parameters for family in target.families)
    wanted = round(target.share * prunable)
    if able < wanted:
        raise InvalidSpec(
            f"{target.share:.1%} of the parameters are to go, and at most {able / prunable:.1%} can: one of each kind "
            "stays in every block",
            "lower the sparsity, or let heads and channels go",
            field="/prune/sparsity",
        )
    return wanted
