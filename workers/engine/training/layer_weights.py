"""The weights of the layers that a training prunes, as canonical matrices inside the model's parameters.

O = outputs, I = inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.engine.model.views import held

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn

    from workers.engine.architectures.architecture import Architecture, LinearFacts
    from workers.engine.model.views import Held


class LayerWeights:
    """Layers of a model whose parameters are all its own, in float32."""

    def __init__(self, model: nn.Module, architecture: Architecture, layers: Sequence[LinearFacts]) -> None:
        places = held(model, architecture)
        self._at: dict[str, tuple[LinearFacts, nn.Parameter, Held]] = {
            layer.name: (layer, model.get_parameter(places[layer.weight].parameter), places[layer.weight])
            for layer in layers
        }

    def __iter__(self) -> Iterator[LinearFacts]:
        return (layer for layer, _, _ in self._at.values())

    def weight(self, layer: LinearFacts) -> Tensor:
        """The layer's weight [O, I]; of several in one parameter, or of a transposed one, a copy."""
        _, parameter, at = self._at[layer.name]
        return at.read(parameter.detach())

    def gradient(self, layer: LinearFacts) -> Tensor | None:
        """Its gradient [O, I], likewise; None before a backward pass."""
        _, parameter, at = self._at[layer.name]
        return None if parameter.grad is None else at.read(parameter.grad)

    def write(self, layer: LinearFacts, weight_OI: Tensor) -> None:
        """Replace the layer's weight."""
        _, parameter, at = self._at[layer.name]
        at.write(parameter.data, weight_OI)

    def write_gradient(self, layer: LinearFacts, gradient_OI: Tensor) -> None:
        """Replace its gradient, of which there is one."""
        _, parameter, at = self._at[layer.name]
        assert parameter.grad is not None  # the caller has read it
        at.write(parameter.grad, gradient_OI)
