"""Group-wise weights of experts, which transformers' modules hold in one parameter for all: [E, O, I], or [E, I, O].

Every expert's matrix has codes and trained offsets of its own, as a linear layer has (`groups.py`). The weights are
made of them before the module computes, so the forward pass is that of the merged weights.
E = experts, O = outputs, I = inputs, G = groups, R = rank; P, Q = the axes of an expert's matrix as it is held.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from workers.engine.contracts.needed import needed
from workers.engine.training.groups import UNQUANTISED, GroupedWeights
from workers.engine.training.shards import written
from workers.engine.training.trainable import mask_of
from workers.engine.training.updated_experts import UpdatedExperts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from workers.engine.files.places import Place
    from workers.engine.model.views import Held


class GroupExperts(UpdatedExperts):
    """A module that holds all experts of a block, with frozen weights and a trained offset per group of each."""

    def __init__(
        self,
        experts: nn.Module,
        transposed: Mapping[str, bool],
        *,
        bits: int,
        group_size: int,
        rank: int,
        alpha: float,
        masked: bool,
    ) -> None:
        """`transposed`: parameter -> whether it is [E, I, O]. `masked`: whether zeros come from pruning."""
        super().__init__(experts, transposed)
        self.scale = alpha / rank / group_size
        self.rows = nn.ModuleDict()
        self.a, self.b = nn.ParameterDict(), nn.ParameterDict()
        self.dtype = next(iter(experts.parameters())).dtype
        for name, turned in transposed.items():
            weight_EOI = _by_outputs(experts.get_parameter(name).detach(), turned)
            count, outputs, inputs = weight_EOI.shape
            weight_OI = weight_EOI.reshape(-1, inputs)
            kept_OI = mask_of(weight_OI) if masked else None
            self.rows[name] = GroupedWeights(weight_OI, kept_OI, bits=bits, group_size=group_size)
            groups, device = inputs // group_size, weight_EOI.device
            self.a[name] = nn.Parameter(torch.empty(count, rank, groups, device=device))
            self.b[name] = nn.Parameter(torch.zeros(count, outputs, rank, device=device))
            experts.get_parameter(name).data = weight_EOI.new_empty(0)  # the rows stand for it

    @torch.no_grad()
    def begin(self) -> None:
        for a_ERG in self.a.values():
            _, rank, groups = a_ERG.shape
            bound = math.sqrt(6 / (rank + groups))  # Xavier's, as of linear layers
            with written(a_ERG.data) as everything:
                nn.init.uniform_(everything, -bound, bound)

    def factors(self) -> dict[str, nn.Parameter]:
        """`<parameter>.a` [E, R, G] and `<parameter>.b` [E, O, R] -> trained parameter, float32."""
        return {f"{name}.{part}": getattr(self, part)[name] for name in self.transposed for part in ("a", "b")}

    def updated(self, name: str) -> Tensor:
        rows: GroupedWeights = self.rows[name]  # type: ignore[assignment]
        count, outputs, _ = self.b[name].shape
        with torch.autocast(self.b[name].device.type, enabled=False):
            offset_EOG = self.scale * torch.bmm(self.b[name], self.a[name])
            found_EOI = rows.dense(offset_EOG.flatten(0, 1)).view(count, outputs, -1)
        return _by_outputs(found_EOI.to(self.dtype), self.transposed[name])

    @torch.no_grad()
    def merged(self, at: Held, stored_OI: Tensor) -> Tensor:
        """The weights as trained of a canonical matrix that lies there, float32: the values of the codes, or
        `stored_OI` moved where none were made."""
        place = needed(at.place, "the place of an expert's matrix")
        name, expert = at.parameter.rpartition(".")[2], needed(place.expert, "the expert of a matrix")
        rows: GroupedWeights = self.rows[name]  # type: ignore[assignment]
        outputs = self.b[name].shape[1]
        mine = slice(expert * outputs, (expert + 1) * outputs)
        offset_OG = self.scale * (self.b[name][expert] @ self.a[name][expert])
        if rows.bits == UNQUANTISED:
            own_OI = rows.weight_OI[mine]
            moved_OI = rows.moved(torch.zeros_like(own_OI, dtype=torch.float32), offset_OG, mine)
            return stored_OI + self._part(name, place, moved_OI)
        return self._part(name, place, rows.dense(offset_OG, mine))

    def _part(self, name: str, place: Place, rows_OI: Tensor) -> Tensor:
        """The canonical matrix within those that a parameter holds of its expert."""
        return replace(place, expert=None).read(_by_outputs(rows_OI, self.transposed[name]))


def _by_outputs(weight: Tensor, transposed: bool) -> Tensor:
    """[..., O, I] of what may be held as [..., I, O], or the reverse."""
    return weight.mT if transposed else weight
