"""Gradual magnitude pruning of a model in training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.engine.contracts.training import Procedure, Trained
from workers.engine.training.trainable import unfrozen
from workers.engine.training.weight_masks import WeightMasks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn
    from torch.optim import Optimizer

    from workers.engine.architectures.architecture import Architecture
    from workers.engine.contracts.training import Target


class Gradual(Procedure):
    """Zeros grow along `1 - (1 - t)^3`; between two masks, and after the last, they stay where they are."""

    def __init__(
        self, model: nn.Module, architecture: Architecture, target: Target, rising: int, interval: int
    ) -> None:
        """`rising`: steps in which the sparsity rises; `interval`: steps between two masks meanwhile."""
        super().__init__()
        self._rising, self._interval = rising, interval
        self._trainable = unfrozen(model, architecture, lambda _: True)
        self._masks = WeightMasks(model, architecture, target)
        self.parameters, self.masks = self._trainable.parameters, self._trainable.masks
        self.state = self._masks.gone

    def before_clipping(self) -> None:
        self._masks.hold()

    def after_update(self, step: int, optimizer: Optimizer) -> None:
        done = step + 1
        if done <= self._rising and (done % self._interval == 0 or done == self._rising):
            self._masks.take(self._masks.sizes(), 1 - (1 - done / self._rising) ** 3)
        self._masks.zero()  # AdamW's moments of before would still move them

    def figures(self) -> Mapping[str, float]:
        return {"sparsity": self._masks.share}

    def finished(self) -> Trained:
        return Trained(self._trainable.merged)
