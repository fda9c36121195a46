"""Canonical tensors as views of the parameters of transformers' modules, which may hold several in one, or transposed.

O = outputs, I = inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.engine.architectures.canonical import canonical_places

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workers.engine.architectures.architecture import Architecture
    from workers.engine.files.places import Place


@dataclass(frozen=True)
class Held:
    """A canonical tensor in a parameter."""

    parameter: str
    """Its name in the module."""
    place: Place | None
    """The part of the parameter; None where it is the whole."""

    def view(self, whole: Tensor) -> Tensor:
        """The part of a tensor of the parameter's shape: of the same elements in order, perhaps with more axes."""
        return whole if self.place is None else self.place.view(whole)

    def read(self, whole: Tensor) -> Tensor:
        """The part as a canonical tensor."""
        return whole if self.place is None else self.place.read(whole)

    def write(self, whole: Tensor, part: Tensor) -> None:
        """Write a canonical tensor where it lies, converted to the parameter's type and device."""
        self.view(whole).copy_(part.reshape(self.view(whole).shape))


def held(module: nn.Module, architecture: Architecture, path: str = "") -> Mapping[str, Held]:
    """Canonical name -> where the parameters of a module hold it. `path`: of the module in the model."""
    layout, below = architecture.layout, f"{path}." if path else ""
    names = {name: parameter.shape for name, parameter in module.named_parameters(remove_duplicate=False)}
    ours = {layout.from_module(below + name): name for name in names}
    shapes = {name: names[own] for name, own in ours.items()}
    # What is never pruned need not be told apart.
    places = canonical_places(layout, layout.in_modules, architecture.sizes, shapes, strict=False)
    return {name: Held(ours[whole], place) for name, (whole, place) in places.items()}
