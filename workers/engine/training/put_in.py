"""Modules of a tuner's own in place of those that compute a model's linear layers, block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from torch import nn

from workers.engine.training.updated_experts import UpdatedExperts

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from workers.engine.architectures.architecture import Architecture

L = TypeVar("L", bound=nn.Module)
X = TypeVar("X", bound=UpdatedExperts)


def put_in(
    model: nn.Module,
    architecture: Architecture,
    paths: Iterable[str],
    stacked: Collection[str],
    blocks: Iterable[int] | None,
    layers_of: Callable[[list[str]], Mapping[str, L]],
    mixture_of: Callable[[str], X],
) -> tuple[dict[str, L], dict[str, X]]:
    """(path -> what stands there now, for single layers; the same for modules of all experts of a block).

    `paths` of single layers, in the order of the forward pass; `stacked`: those of modules of all experts. `blocks`: as
    a tuner gets them (`contracts/protocols.py`); None where the whole model is there. `layers_of` puts modules in at
    the paths of one block; `mixture_of` makes the module for a path. Random numbers are drawn in the order of the
    layers, then of the experts.
    """
    of_block: dict[int, list[str]] = {}
    for path in [*paths, *stacked]:
        within = architecture.layout.split(architecture.layout.from_module(path))
        assert within is not None  # they compute layers of blocks
        of_block.setdefault(within[0], []).append(path)
    layers: dict[str, L] = {}
    mixtures: dict[str, X] = {}
    for block in range(architecture.blocks) if blocks is None else blocks:
        here = of_block.get(block, [])
        layers |= layers_of([path for path in here if path not in stacked])
        for path in here:
            if path in stacked:
                mixtures[path] = mixture_of(path)
                model.set_submodule(path, mixtures[path])
    for mixture in mixtures.values():
        mixture.begin()
    return layers, mixtures


def trained_of(mixtures: Mapping[str, UpdatedExperts]) -> dict[str, nn.Parameter]:
    """Name in the model -> what trains of modules of all experts, given by their paths."""
    return {
        f"{path}.{name}": parameter
        for path, mixture in mixtures.items()
        for name, parameter in mixture.factors().items()
    }
