"""The weights that go, as masks of the parameters that hold them, where the model trains and they still may come back.

A parameter may hold several layers, or one transposed. Masks of parameters that are divided over ranks are divided
like them; to take them, the ranks look at the scores of one whole parameter after the other, all at the same. O =
outputs, I = inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from workers.engine.maths.masking import zero_
from workers.engine.maths.selection import lowest, lowest_of_groups
from workers.engine.model.views import held
from workers.engine.training.shards import own, whole, written

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workers.engine.architectures.architecture import Architecture, LinearFacts
    from workers.engine.contracts.training import Target
    from workers.engine.model.views import Held


class WeightMasks:
    """Masks of the layers of a target, of exactly as many weights as are to go."""

    def __init__(self, model: nn.Module, architecture: Architecture, target: Target) -> None:
        """Nothing is masked yet."""
        places = held(model, architecture)
        self._target = target
        self._layers: dict[str, list[tuple[LinearFacts, Held]]] = {}
        for layer in target.layers:
            place = places[layer.weight]
            self._layers.setdefault(place.parameter, []).append((layer, place))
        self.parameters = {name: model.get_parameter(name) for name in self._layers}
        """Those that hold layers which are pruned, by their names in the model."""
        self.gone = {
            name: torch.zeros_like(parameter, dtype=torch.bool, requires_grad=False)
            for name, parameter in self.parameters.items()
        }
        """Name of the parameter -> weights that go. Written in place."""

    @torch.no_grad()
    def take(self, scores: Mapping[str, Tensor], share: float = 1.0) -> int:
        """Mask the weights with the lowest scores, given in the parameters' shapes, and no others: a share of those
        that are to go, of a layer or of each group rounded down. Returns how many of them were not masked before."""
        changed = []
        for name, layers in self._layers.items():
            score = whole(scores[name])
            with written(self.gone[name]) as gone:
                for layer, place in layers:
                    gone_OI = self._lowest(layer, place.read(score), share)
                    changed.append((gone_OI & ~place.read(gone)).sum())
                    place.write(gone, gone_OI)
        return int(torch.stack(changed).sum())

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the masked weights are zero."""
        kept = self.hide()
        try:
            yield
        finally:
            self.show(kept)

    @torch.no_grad()
    def hide(self) -> dict[str, Tensor]:
        """`zero`; returns the weights as they were, for `show`."""
        kept = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.zero()
        return kept

    @torch.no_grad()
    def show(self, kept: Mapping[str, Tensor]) -> None:
        """Undo `hide`."""
        for name, parameter in self.parameters.items():
            parameter.copy_(kept[name])

    @torch.no_grad()
    def zero(self) -> None:
        """Set the masked weights to zero."""
        for name, parameter in self.parameters.items():
            zero_(own(parameter), own(self.gone[name]))

    @torch.no_grad()
    def hold(self) -> None:
        """Set the gradients of the masked weights to zero."""
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                zero_(own(parameter.grad), own(self.gone[name]))

    def sizes(self) -> dict[str, Tensor]:
        """The weights' absolute values, as scores."""
        return {name: parameter.detach().abs() for name, parameter in self.parameters.items()}

    @property
    def count(self) -> int:
        """Weights that are masked."""
        return sum(int(whole(gone.sum())) for gone in self.gone.values())

    @property
    def share(self) -> float:
        """Of the layers' weights, that is masked."""
        return self.count / sum(layer.parameters for layer in self._target.layers)

    def _lowest(self, layer: LinearFacts, score_OI: Tensor, share: float) -> Tensor:
        """Boolean [O, I]."""
        if self._target.kept_of is None:
            count = int(self._target.counts[layer.name] * share)
            return lowest(score_OI.reshape(1, -1), count).reshape(score_OI.shape)
        m = self._target.kept_of[1]
        count = int(round(m * self._target.sparsity[layer.name]) * share)
        return lowest_of_groups(score_OI.reshape(-1, m), count).reshape(score_OI.shape)
