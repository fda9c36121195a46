"""Which groups of coupled weights go next, while a model trains: one kind at a time, by the lowest cost.

A group is a unit of a family: a key/value head with its query heads, an MLP channel, a hidden dimension. Its cost is
the increase of the loss that is expected when it goes, per parameter, so that groups of different sizes compare.
U = units of a family.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

Key = tuple[int | None, str]
"""(block, kind) of a family; the block is None for hidden dimensions, which are the whole model's."""
Course = Literal["linear", "cubic"]


@dataclass(frozen=True)
class Groups:
    """One family, as far as removing its units is concerned."""

    parameters: int
    """Of one unit."""
    most: int
    """Units that may still go."""
    saliency_U: Tensor
    """Expected increase of the loss when a unit goes, float64."""
    kept_U: Tensor
    """Boolean: units that are still there."""


def gone_by(course: Course, progress: float) -> float:
    """The share of all removals that is done at a share of the time, both in [0, 1]: `cubic` begins steeply and ends
    gently (Zhu and Gupta 2017, arXiv:1710.01878)."""
    return progress if course == "linear" else 1 - (1 - progress) ** 3


def next_groups(families: Mapping[Key, Groups], missing: int, room: int) -> list[tuple[Key, int]]:
    """(family, unit) of those that go now, in the order in which they go.

    `missing` parameters are to go, and at most `room` may. One kind of group covers them: the one whose lowest groups
    cost least per parameter, if the others can still make up for the rest of `room`, to within the smallest. Others
    follow only where it has too few. A head may be larger than what is missing, and then goes as a whole; what cannot
    go without exceeding `room` stays.
    """
    left = dict(families)
    found: list[tuple[Key, int]] = []
    while missing > 0:
        offers = [_covering(left, kind, missing, room) for kind in sorted({kind for _, kind in left})]
        offers = sorted((offer for offer in offers if offer), key=lambda offer: _cost(left, offer))
        if not offers:
            break
        afterwards = [(offer, _without(left, offer), room - _size(left, offer)) for offer in offers]
        completing = [one for one in afterwards if _completes(one[1], one[2])]
        offer, left, room = (completing or afterwards)[0]
        found, missing = [*found, *offer], missing - _size(families, offer)
    return found


def _without(families: Mapping[Key, Groups], offer: Sequence[tuple[Key, int]]) -> dict[Key, Groups]:
    left = dict(families)
    for key, unit in offer:
        groups = left[key]
        kept_U = groups.kept_U.clone()
        kept_U[unit] = False
        left[key] = Groups(groups.parameters, groups.most - 1, groups.saliency_U, kept_U)
    return left


def _size(families: Mapping[Key, Groups], offer: Sequence[tuple[Key, int]]) -> int:
    return sum(families[key].parameters for key, _ in offer)


def _completes(families: Mapping[Key, Groups], room: int) -> bool:
    """Whether groups can amount to `room`, to within the smallest: as few large ones as let small ones cover the
    rest."""
    counts: dict[int, int] = {}
    for groups in families.values():
        counts[groups.parameters] = counts.get(groups.parameters, 0) + groups.most
    smallest, *larger = sorted(counts)
    rest = room - counts[smallest] * smallest
    for size in larger:
        taken = min(counts[size], max(0, -(-(rest - smallest + 1) // size)))
        if taken * size > room:
            return False
        rest, room = rest - taken * size, room - taken * size
    return rest < smallest


def _covering(families: Mapping[Key, Groups], kind: str, missing: int, room: int) -> list[tuple[Key, int]]:
    """The groups of a kind of the lowest cost per parameter, until what is missing is covered."""
    order = []
    for key in sorted(key for key in families if key[1] == kind):
        groups = families[key]
        units = groups.kept_U.nonzero().flatten()
        cost_U = groups.saliency_U[units] / groups.parameters
        first = torch.argsort(cost_U, stable=True)[: groups.most]
        order += [(cost, key, unit) for cost, unit in zip(cost_U[first].tolist(), units[first].tolist(), strict=True)]
    found: list[tuple[Key, int]] = []
    for _, key, unit in sorted(order):
        size = families[key].parameters
        if missing <= 0:
            break
        if size <= room:
            found.append((key, unit))
            missing, room = missing - size, room - size
    return found


def _cost(families: Mapping[Key, Groups], offer: Sequence[tuple[Key, int]]) -> float:
    """Of all groups of an offer together, per parameter."""
    return sum(families[key].saliency_U[unit].item() for key, unit in offer) / _size(families, offer)
