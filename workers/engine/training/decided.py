"""Which units go at the end of a training that has given each of them a number, higher is kept. N = units of a row.

A row is what a count of units that go is said of: a kind in a block, or in the whole model, as hidden dimensions and
layers are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from workers.engine.maths.selection import lowest

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.architectures.architecture import Family

Row = tuple[int | None, str]
"""(block, kind), as in `Target.going`."""


def row_of(family: Family) -> Row:
    """The row of a family."""
    return (None if family.shared or family.is_block else family.block, family.kind)


def rows_of(families: Sequence[Family]) -> dict[Row, list[Family]]:
    """Row -> its families: one, or those of all blocks, of which each has the same dimensions or is one layer."""
    found: dict[Row, list[Family]] = {}
    for family in families:
        found.setdefault(row_of(family), []).append(family)
    return found


def units_of(families: Sequence[Family]) -> int:
    """How many units a row of these families has."""
    return len(families) if families[0].is_block else families[0].units


def lowest_of_each(importance: Mapping[Row, Tensor], going: Mapping[Row, int]) -> dict[Row, Tensor]:
    """Row -> bool [N]: the lowest units of each, as many as are to go; of equal ones the first."""
    return {row: lowest(values_N.detach()[None], going.get(row, 0))[0] for row, values_N in importance.items()}


def lowest_of_all(
    importance: Mapping[Row, Tensor], sizes: Mapping[Row, int], budget: float, stay: Mapping[Row, int]
) -> dict[Row, Tensor]:
    """Row -> bool [N]: the lowest units of all rows together. `sizes`: parameters of one unit. `stay`: units of a row
    that stay at least, one where it is not said.

    What goes amounts to `budget` parameters to within half a unit of the smallest kind, as far as what must stay
    allows. Of equal units those go first of whose row the least has gone.
    """
    order: list[tuple[float, float, Row, int]] = []
    for row, values_N in importance.items():
        values = values_N.tolist()
        own = sorted(range(len(values)), key=values.__getitem__)[: len(values) - stay.get(row, 1)]
        order += [(values[unit], place / len(values), row, unit) for place, unit in enumerate(own)]
    least, closed, too_large = min(sizes.values()), [], []
    left = budget + least / 2
    for *_, row, unit in sorted(order, key=lambda found: found[:2]):
        if sizes[row] <= left:
            closed.append((row, unit))
            left -= sizes[row]
        else:
            too_large.append((row, unit))
    small = [found for found in closed if sizes[found[0]] == least]
    if left >= least and too_large:  # all small units are gone: a larger one goes too, and some of them come back
        back = math.ceil((sizes[too_large[0][0]] - left) / least)
        if back <= len(small):
            again = set(small[len(small) - back :])
            closed = [too_large[0], *(found for found in closed if found not in again)]
    masks = {row: torch.zeros(len(values_N), dtype=torch.bool) for row, values_N in importance.items()}
    for row, unit in closed:
        masks[row][unit] = True
    return {row: mask_N.to(importance[row].device) for row, mask_N in masks.items()}


def scores_of(
    families: Sequence[Family], importance: Mapping[Row, Tensor], closed: Mapping[Row, Tensor]
) -> list[dict[str, Sequence[float]]]:
    """`Trained.scores` of the decision: below zero for units that go, zero and above for those that stay, each in the
    order of their importance. Families in a row without importance stay whole."""
    scores: list[dict[str, Sequence[float]]] = [{} for _ in range(1 + max(family.block for family in families))]
    for row, of_row in rows_of(families).items():
        if row in importance:
            place_N = importance[row].detach().argsort(stable=True).argsort().float()
            score_N = torch.where(closed[row], place_N - len(place_N), place_N).tolist()
        else:
            score_N = [1.0] * units_of(of_row)
        for number, family in enumerate(of_row):
            scores[family.block][family.kind] = [score_N[number]] if family.is_block else score_N
    return scores
