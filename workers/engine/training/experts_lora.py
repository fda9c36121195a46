"""LoRA of experts' matrices, which transformers' modules hold in one parameter for all: [E, O, I], or [E, I, O].

Every expert has factors of its own. The update is added to the weights before the module computes with them, as peft
does with such parameters, so the forward pass is that of the merged weights. It cannot leave inputs out: there is no
dropout. Zeros that pruning left stay.
E = experts, O = outputs, I = inputs, R = rank; P, Q = the axes of an expert's matrix as it is held.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from workers.engine.training.shards import written
from workers.engine.training.trainable import mask_of
from workers.engine.training.updated_experts import UpdatedExperts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


class ExpertsLora(UpdatedExperts):
    """A module that holds all experts of a block, with low-rank updates of some of its parameters."""

    def __init__(
        self, experts: nn.Module, transposed: Mapping[str, bool], *, rank: int, alpha: float, masked: bool
    ) -> None:
        """`transposed`: parameter -> whether it is [E, I, O]. `masked`: whether zeros come from pruning."""
        super().__init__(experts, transposed)
        self.scale = alpha / rank
        self.lora_A, self.lora_B = nn.ParameterDict(), nn.ParameterDict()
        self.masked = set()
        for name, turned in transposed.items():
            weight_EPQ = experts.get_parameter(name)
            count, outputs, inputs = (weight_EPQ.mT if turned else weight_EPQ).shape
            self.lora_A[name] = nn.Parameter(torch.empty(count, rank, inputs, device=weight_EPQ.device))
            self.lora_B[name] = nn.Parameter(torch.zeros(count, outputs, rank, device=weight_EPQ.device))
            if masked and mask_of(weight_EPQ.detach()) is not None:
                self.masked.add(name)

    @torch.no_grad()
    def begin(self) -> None:
        for factor_ERI in self.lora_A.values():
            bound = 1 / math.sqrt(factor_ERI.shape[2])  # as of peft's layers
            with written(factor_ERI.data) as everything:
                nn.init.uniform_(everything, -bound, bound)

    def factors(self) -> dict[str, nn.Parameter]:
        """`<parameter>.lora_A` [E, R, I] and `<parameter>.lora_B` [E, O, R] -> trained parameter, float32."""
        return {
            f"{name}.{part}": getattr(self, part)[name] for name in self.transposed for part in ("lora_A", "lora_B")
        }

    def updated(self, name: str) -> Tensor:
        weight_EPQ = self.base_layer.get_parameter(name)
        left_EPR, right_ERQ = self.lora_B[name], self.lora_A[name]
        if self.transposed[name]:
            left_EPR, right_ERQ = right_ERQ.mT, left_EPR.mT
        with torch.autocast(weight_EPQ.device.type, enabled=False):
            found_EPQ: Tensor = torch.baddbmm(weight_EPQ.float(), left_EPR, right_ERQ, alpha=self.scale)
        if name in self.masked:
            found_EPQ = found_EPQ.mul_(weight_EPQ != 0)
        found: Tensor = found_EPQ.to(weight_EPQ.dtype)
        return found

    @torch.no_grad()
    def update(self, name: str, expert: int) -> Tensor:
        """The update of one expert's matrix as it is held [P, Q], float32."""
        delta_OI: Tensor = self.scale * (self.lora_B[name][expert] @ self.lora_A[name][expert])
        delta_PQ = delta_OI.T if self.transposed[name] else delta_OI
        if name in self.masked:
            delta_PQ = delta_PQ.where(self.base_layer.get_parameter(name)[expert] != 0, 0)
        return delta_PQ
