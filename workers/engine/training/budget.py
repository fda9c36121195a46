"""How many parameters are gone when a training that decides on units ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.engine.training.decided import rows_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workers.engine.architectures.architecture import Family
    from workers.engine.contracts.training import Target


def parameters_going(target: Target, prunable: int) -> int:
    """Of the `prunable` parameters. What two kinds share, as a head and a hidden dimension do, counts twice."""
    if target.going is None:
        return round(target.share * prunable)
    rows = rows_of(target.families)
    return sum(target.going[row] * unit_parameters(families) for row, families in rows.items())


def unit_parameters(families: Sequence[Family]) -> int:
    """Of one unit of a row: a hidden dimension is in all blocks."""
    return sum(family.unit_parameters for family in families[: None if families[0].shared else 1])
