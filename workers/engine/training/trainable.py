"""Trained parameters of a model, and how they are merged into plain weights. O, I = outputs, inputs.

A zero in a linear layer of the blocks comes from pruning, unless the block was added, and stays: its gradient and its
update are zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from torch import nn

from workers.engine.contracts.facts import Trainable
from workers.engine.errors import UnsupportedModel
from workers.engine.model.views import held
from workers.engine.training.shards import whole

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.architectures.architecture import Architecture, LinearFacts

M = TypeVar("M", bound=nn.Module)


def linears(model: nn.Module, architecture: Architecture, kinds: tuple[type[M], ...]) -> dict[str, M]:
    """Path -> module that computes linear layers of the blocks, in the order of the forward pass, but for those of
    `experts`. Raises UnsupportedModel where one is of none of these `kinds`."""
    found: dict[str, M] = {}
    of_experts = experts(model, architecture)
    for path in dict.fromkeys(path for path, _ in architecture.matrices() if path not in of_experts):
        module = model.get_submodule(path)
        if not isinstance(module, kinds):
            raise UnsupportedModel(
                f"{path} is a {type(module).__name__}, to which this method adds nothing",
                "tune with `full` or `last_layers`",
                field="/tune/method",
            )
        found[path] = module
    return found


def experts(model: nn.Module, architecture: Architecture) -> dict[str, dict[str, bool]]:
    """Path -> parameter -> whether it is [E, I, O] instead of [E, O, I], of the modules that hold all experts' matrices
    of a block."""
    found: dict[str, dict[str, bool]] = {}
    places = held(model, architecture)
    for layer in architecture.layers:
        at = places[layer.weight]
        if at.place is not None and at.place.expert is not None:
            path, _, own = at.parameter.rpartition(".")
            found.setdefault(path, {})[own] = at.place.transposed
    return found


def own_parameters(model: nn.Module, architecture: Architecture, block: int | None) -> list[tuple[str, nn.Parameter]]:
    """(name in the files, parameter) of the model's own in a block, or outside of blocks."""
    layout, found = architecture.layout, []
    for name, parameter in model.named_parameters():
        within = layout.split(layout.from_module(name))
        if (None if within is None else within[0]) == block:
            found.append((layout.from_module(name), parameter))
    return found


def mask_of(weight_OI: Tensor) -> Tensor | None:
    """Boolean [O, I]: weights that pruning left; None where none is zero."""
    kept_OI = weight_OI != 0
    return None if bool(whole(kept_OI).all()) else kept_OI


def pruned(architecture: Architecture) -> list[LinearFacts]:
    """The layers whose zeros come from pruning: those of blocks that were added do not."""
    return [layer for layer in architecture.layers if layer.block not in architecture.new_blocks]


def has_tied_head(model: nn.Module, architecture: Architecture) -> bool:
    """Whether the output head is the embedding, which then has the parameter."""
    layout = architecture.layout
    return layout.in_module(layout.head_weight) not in dict(model.named_parameters())


def unfrozen(model: nn.Module, architecture: Architecture, trained: Callable[[str], bool]) -> Trainable:
    """Train the model's own parameters whose names, in the files, `trained` picks; zeros of linear layers get no
    gradient."""
    places, layout = held(model, architecture), architecture.layout
    linear = {places[layer.weight].parameter for layer in pruned(architecture)}
    masks = {name: mask_of(model.get_parameter(name)) for name in sorted(linear) if trained(layout.from_module(name))}
    parameters = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained(layout.from_module(name)))
        if not parameter.requires_grad:
            continue
        parameters[name] = parameter
        if (kept_OI := masks.get(name)) is not None:
            # AdamW does not change a weight of zero whose gradient was always zero, decay included.
            parameter.register_hook(lambda gradient, kept=kept_OI: gradient * kept)
    # A tied head may be stored under its own name too.
    changed = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}

    def merged(name: str, stored: Tensor) -> Tensor:
        found = places.get(name)
        if found is None or found.parameter not in changed:
            return stored
        return found.read(model.get_parameter(found.parameter).detach())  # whole now, where the model is divided

    return Trainable(parameters, merged, {name: kept for name in parameters if (kept := masks.get(name)) is not None})
