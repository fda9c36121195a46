"""A model of the dense shapes without the units that a training has given a score below zero."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from workers.engine.removals.spread import sparsity_of_left

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from workers.engine.architectures.architecture import Architecture
    from workers.engine.contracts.facts import Units


def without_units(
    merged: Callable[[str, Tensor], Tensor], architecture: Architecture, units: Units
) -> Callable[[str, Tensor], Tensor]:
    """The trained weights, `(tensor name, stored tensor) -> tensor`, so that nothing depends on units that go: zero in
    the columns that read heads and channels, and in hidden dimensions wherever they are. Layers that go keep theirs:
    zeros would not make every family's pass on what they read."""
    layout = architecture.layout
    readers: dict[str, Tensor] = {}
    gone_D = torch.zeros(architecture.hidden_size, dtype=torch.bool)
    for family in units.families:
        gone_U = torch.tensor([score < 0 for score in units.of(family)])
        if family.kind == "hidden":
            gone_D = gone_U
        elif not family.is_block:
            readers[family.reader.tensor] = gone_U

    def found(name: str, stored: Tensor) -> Tensor:
        tensor = merged(name, stored)
        if name in readers and bool(readers[name].any()):
            gone_I = readers[name].repeat_interleave(tensor.shape[1] // len(readers[name]))
            tensor = tensor.masked_fill(gone_I.to(tensor.device), 0)
        if bool(gone_D.any()) and (axis := layout.hidden_axis(name)) is not None:
            tensor = tensor.index_fill(axis, gone_D.nonzero().flatten().to(tensor.device), 0)
        return tensor

    return found


def sparsity_without(architecture: Architecture, units: Units) -> Mapping[str, float]:
    """Layer name -> fraction of it that those units are."""
    left = {
        (family.block, family.kind): sum(score >= 0 for score in units.of(family)) / family.units
        for family in units.families
    }
    return sparsity_of_left(architecture.layers, left)
