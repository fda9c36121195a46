"""AdamW whose moments take 8 bits each and a scale for each 256 of them, by torchao (Dettmers et al. 2021,
arXiv:2110.02861): two bytes a parameter for eight. Parameters of fewer than 4096 entries keep theirs in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torchao.optim import AdamW8bit

from workers.engine.training.moments import BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class EightBitAdamW(AdamW8bit):
    """Called and scheduled like torch's AdamW: rates are numbers, where torchao's are tensors.

    Computes as written: compiled, it would need a C++ compiler, take minutes to begin, and round as that compiler does.
    """

    def __init__(self, params: Any, **given: Any) -> None:
        super().__init__(params, block_size=BLOCK, **given)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        rate = param_group.get("lr", self.defaults["lr"])
        super().add_param_group(param_group)
        self.param_groups[-1]["lr"] = rate

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        rates = [group["lr"] for group in self.param_groups]
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = torch.tensor(rate, dtype=torch.float32)
        try:
            with torch.compiler.set_stance("force_eager"):
                loss: Tensor | None = super().step(closure)
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate
        return loss

    def moment(self, parameter: Tensor, *, signed: bool) -> Tensor:
        """Zeros, as its first step would make them."""
        zeros: Tensor = self._new_buffer(parameter, signed)
        return zeros
