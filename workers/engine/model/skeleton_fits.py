"""Whether the weights are those that the skeleton's modules take: known at load, from names and shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from workers.engine.architectures.canonical import in_modules
from workers.engine.errors import UnsupportedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from workers.engine.architectures.architecture import Architecture
    from workers.engine.files.safetensors_bytes import TensorFacts

Shapes = Mapping[str, tuple[int, ...]]


def check_skeleton(skeleton: PreTrainedModel, architecture: Architecture, tensors: Mapping[str, TensorFacts]) -> None:
    """Refuse weights whose blocks transformers builds otherwise, e.g. of another kind: UnsupportedModel.

    `tensors`: the canonical ones. Blocks that are alike are put together once.
    """
    layout = architecture.layout
    blocks: list[dict[str, tuple[int, ...]]] = [{} for _ in range(architecture.blocks)]
    for name, facts in tensors.items():
        if (found := layout.split(name)) is not None:
            blocks[found[0]][found[1]] = facts.shape
    alike: dict[frozenset[tuple[str, tuple[int, ...]]], Shapes] = {}
    for number, inside in enumerate(blocks):
        kind = frozenset(inside.items())
        if kind not in alike:
            alike[kind] = _held(architecture, inside)
        module = skeleton.get_submodule(layout.in_module(layout.block(number)))
        for below, tensor in module.state_dict().items():
            if alike[kind].get(below) != tuple(tensor.shape):
                raise _other(
                    architecture, f"{layout.block(number)}.{below}", tuple(tensor.shape), alike[kind].get(below)
                )


def _held(architecture: Architecture, inside: Shapes) -> Shapes:
    """Name below the block -> shape of its modules' parameters, made of a block's canonical tensors."""
    layout = architecture.layout
    block = layout.block(0)
    empty = {f"{block}.{name}": torch.empty(shape, device="meta") for name, shape in inside.items()}
    theirs = in_modules(layout, architecture.sizes, empty)
    prefix = f"{layout.in_module(block)}."
    return {name.removeprefix(prefix): tuple(tensor.shape) for name, tensor in theirs.items()}


def _other(
    architecture: Architecture, name: str, built: tuple[int, ...], held: tuple[int, ...] | None
) -> UnsupportedModel:
    there = "the weights have nothing for it" if held is None else f"the weights make it {list(held)}"
    return UnsupportedModel(
        f"{architecture.model_type}: transformers builds `{name}` as {list(built)} by config.json, and {there}",
        "check that config.json belongs to the weights, its lists of blocks' kinds too",
        field="/model/id",
    )
