"""Gradual magnitude pruning of a model in training. O = outputs, I = inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from workers.engine.contracts.training import Procedure, Trained
from workers.engine.maths.selection import lowest, lowest_of_groups
from workers.engine.training.layer_weights import LayerWeights
from workers.engine.training.trainable import unfrozen

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from workers.engine.architectures.architecture import Architecture, LinearFacts
    from workers.engine.contracts.training import Target


class Gradual(Procedure):
    """Zeros grow along `1 - (1 - t)^3`; between two masks, and after the last, they stay where they are."""

    def __init__(
        self, model: nn.Module, architecture: Architecture, target: Target, rising: int, interval: int
    ) -> None:
        """`rising`: steps in which the sparsity rises; `interval`: steps between two masks meanwhile."""
        super().__init__()
        self._target, self._rising, self._interval = target, rising, interval
        self._trainable = unfrozen(model, architecture, lambda _: True)
        self._layers = LayerWeights(model, architecture, target.layers)
        self.parameters = self._trainable.parameters
        self.state = {layer.name: torch.zeros(layer.shape, dtype=torch.bool) for layer in self._layers}
        """Layer name -> the weights that are gone, [O, I]."""

    def before_update(self, step: int) -> None:
        for layer in self._layers:
            if (gradient_OI := self._layers.gradient(layer)) is not None:
                self._layers.write_gradient(layer, gradient_OI.masked_fill(self._gone(layer), 0))

    def after_update(self, step: int, optimizer: Optimizer) -> None:
        done = step + 1
        if done <= self._rising and (done % self._interval == 0 or done == self._rising):
            share = 1 - (1 - done / self._rising) ** 3
            for layer in self._layers:
                self.state[layer.name].copy_(self._smallest(layer, share))
        for layer in self._layers:  # what AdamW's moments of before would still move
            self._layers.write(layer, self._layers.weight(layer).masked_fill(self._gone(layer), 0))

    def figures(self) -> Mapping[str, float]:
        gone = sum(int(mask_OI.sum()) for mask_OI in self.state.values())
        return {"sparsity": gone / sum(mask_OI.numel() for mask_OI in self.state.values())}

    def finished(self) -> Trained:
        return Trained(self._trainable.merged)

    def _gone(self, layer: LinearFacts) -> Tensor:
        weight_OI = self._layers.weight(layer)
        return self.state[layer.name].to(weight_OI.device)

    def _smallest(self, layer: LinearFacts, share: float) -> Tensor:
        """Boolean [O, I]: the smallest weights, `share` of those that go at the end; whole numbers of a group's."""
        size_OI = self._layers.weight(layer).abs()
        if self._target.kept_of is None:
            return lowest(size_OI.reshape(1, -1), int(self._target.counts[layer.name] * share)).reshape(layer.shape)
        m = self._target.kept_of[1]
        count = int(round(m * self._target.sparsity[layer.name]) * share)
        return lowest_of_groups(size_OI.reshape(-1, m), count).reshape(layer.shape)
