"""Importance of weights by a Taylor series of the loss, and of units by their weights (LLM-Pruner, arXiv:2305.11627).

Removing w changes the loss by -(w g - w^2 h / 2) to second order, with g the gradient and h the curvature, for which
the empirical Fisher information A (the mean square of every window's gradient) stands in.
U = units of a family, W = vectors of a unit, as many as divide those of all members, C = weights of a vector.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch

from workers.engine.contracts.needed import needed
from workers.engine.maths.unit_slices import unit_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from workers.engine.architectures.architecture import Family

Order = Literal["first", "second", "mixed"]
Form = Literal["element", "vector"]


def weight_importance(weight: Tensor, gradient: Tensor | None, squared: Tensor | None, order: Order) -> Tensor:
    """Signed, float32, of the weight's shape: w g (`first`), w^2 A (`second`), w g - w^2 A / 2 (`mixed`)."""
    weight = weight.float()
    if order == "first":
        return weight * needed(gradient, "Stat.GRADIENT")
    curved = weight.square() * needed(squared, "Stat.SQUARED_GRADIENT")
    if order == "second":
        return curved
    return weight * needed(gradient, "Stat.GRADIENT") - curved / 2


def unit_importance(importances: Mapping[str, Tensor], family: Family, form: Form) -> Tensor:
    """[M, U, W] float64 of the M weight matrices of a family: each row or column that a unit owns, as the sum of its
    weights' absolute importances (`element`) or the absolute value of their sum (`vector`).

    Matrices in which a unit owns more vectors (a group's query heads) are folded onto fewer, so that vectors of one
    head position are added up.
    """
    rows = []
    for member in family.members:
        if member.is_bias:
            continue
        values_UWC = unit_rows(importances[member.tensor], family, member).double()
        rows.append(values_UWC.abs().sum(dim=2) if form == "element" else values_UWC.sum(dim=2).abs())
    fewest = math.gcd(*(values_UW.shape[1] for values_UW in rows))
    return torch.stack([values_UW.reshape(family.units, -1, fewest).sum(dim=1) for values_UW in rows])
