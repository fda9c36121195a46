"""Trained parameters of a model, and how they are merged into plain weights. O, I = outputs, inputs.

A zero in a linear layer of the blocks comes from pruning and stays: its gradient and its update are zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

from workers.engine.contracts.facts import Trainable

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.architectures.architecture import Architecture


def linears(model: nn.Module, architecture: Architecture) -> dict[str, nn.Linear]:
    """Name -> prunable linear layer of the blocks, in the order of the forward pass."""
    found: dict[str, nn.Linear] = {layer.name: model.get_submodule(layer.name) for layer in architecture.layers}  # type: ignore[misc]
    return found


def mask_of(weight_OI: Tensor) -> Tensor | None:
    """Boolean [O, I]: weights that pruning left; None where none is zero."""
    kept_OI = weight_OI != 0
    return None if bool(kept_OI.all()) else kept_OI


def unfrozen(model: nn.Module, architecture: Architecture, trained: Callable[[str], bool]) -> Trainable:
    """Train the model's own parameters whose names `trained` picks; zeros of linear layers get no gradient."""
    masks = {layer.weight: mask_of(model.get_parameter(layer.weight)) for layer in architecture.layers}
    parameters = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained(name))
        if not parameter.requires_grad:
            continue
        parameters[name] = parameter
        if (kept_OI := masks.get(name)) is not None:
            # AdamW does not change a weight of zero whose gradient was always zero, decay included.
            parameter.register_hook(lambda gradient, kept=kept_OI: gradient * kept)  # type: ignore[no-untyped-call]
    # A tied head may be stored under its own name too.
    values = {name: p for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}

    def merged(name: str, stored: Tensor) -> Tensor:
        return values[name].detach() if name in values else stored

    return Trainable(parameters, merged)
