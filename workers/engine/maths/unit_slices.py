"""The slices of tensors that units of a family own.

U = units of a family, W = width of a unit along a tensor's axis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from workers.engine.architectures.architecture import Family, Kind, Member


def kept_only(
    tensors: Mapping[str, Tensor], cut: Iterable[Family], kept: Mapping[Kind, Sequence[int]]
) -> dict[str, Tensor]:
    """A block's tensors with only the `kept` units (ascending indices) of each family of `cut`."""
    sliced = dict(tensors)
    for family in cut:
        for member in family.members:
            tensor = sliced[member.tensor]
            width = tensor.shape[member.axis] // family.units
            index = [unit * width + offset for unit in kept[family.kind] for offset in range(width)]
            sliced[member.tensor] = tensor.index_select(member.axis, torch.tensor(index, device=tensor.device))
    return sliced


def unit_rows(tensor: Tensor, family: Family, member: Member) -> Tensor:
    """The slices of a member that each unit owns, [U, W, ...]: one vector per index, other axes flattened."""
    moved = tensor.movedim(member.axis, 0)
    return moved.reshape(family.units, moved.shape[0] // family.units, -1)
