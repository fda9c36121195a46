"""The slices of a model's parameters, and of what lies beside them in the same shapes, that units of a family own.

U = units of a family.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from workers.engine.architectures.architecture import Member
from workers.engine.maths.unit_slices import unit_rows
from workers.engine.model.views import held
from workers.engine.training.budget import unit_parameters
from workers.engine.training.shards import whole, written

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from workers.engine.architectures.architecture import Architecture, Family

    Value = Callable[[Sequence[Tensor]], Tensor]


class GroupSlices:
    """Reads and writes tensors by units, however transformers' modules hold them, whole or divided over ranks."""

    def __init__(self, model: nn.Module, architecture: Architecture) -> None:
        self._places, self._layout = held(model, architecture), architecture.layout
        self._parameters = dict(model.named_parameters(remove_duplicate=False))

    def parameter(self, member: Member) -> nn.Parameter:
        """The parameter that holds a member."""
        return self._parameters[self._places[member.tensor].parameter]

    def of_the_model(self, hidden: Sequence[Family]) -> Family:
        """The hidden dimensions of all blocks as one family, with those of embedding, output head and norms."""
        members, seen = [], set()
        for name, at in self._places.items():
            axis, parameter = self._layout.hidden_axis(name), self._parameters[at.parameter]
            if axis is None or (id(parameter), at.place) in seen:  # a tied head is its embedding
                continue
            seen.add((id(parameter), at.place))
            members.append(Member(name, axis))
        return replace(hidden[0], members=tuple(members), unit_parameters=unit_parameters(hidden))

    def read(self, member: Member, beside: Callable[[nn.Parameter], Tensor]) -> Tensor:
        """A member's canonical part of a tensor of its parameter's shape."""
        return self._places[member.tensor].read(whole(beside(self.parameter(member))))

    def write(self, member: Member, values: Tensor) -> None:
        """Write a member's canonical values."""
        with written(self.parameter(member).data) as everything:
            self._places[member.tensor].write(everything, values)

    def sums(
        self, family: Family, value: Callable[[Sequence[Tensor]], Tensor], *beside: Callable[..., Tensor]
    ) -> Tensor:
        """Sum over all weights and biases of each unit, float64 [U], of `value(tensors)`: a number for each of a
        member's entries, from its parts of the tensors that `beside` names."""
        total_U = torch.zeros(family.units, dtype=torch.float64)
        for name, members in groupby(family.members, lambda member: self._places[member.tensor].parameter):
            everything = [whole(one(self._parameters[name])) for one in beside]  # perhaps of all experts
            for member in members:
                values = value([self._places[member.tensor].read(tensor) for tensor in everything])
                total_U += unit_rows(values, family, member).double().sum(dim=(1, 2)).cpu()
        return total_U

    def clear(self, family: Family, units: Sequence[int], tensor: Tensor, member: Member) -> None:
        """Set the slices that units own to zero in a tensor of the shape of the member's parameter."""
        place = self._places[member.tensor]
        with written(tensor) as everything:
            part = place.read(everything).clone()
            width = part.shape[member.axis] // family.units
            index = [unit * width + offset for unit in units for offset in range(width)]
            part.index_fill_(member.axis, torch.tensor(index, device=part.device), 0)
            place.write(everything, part)
