"""Traces of a trained model, before and after it is merged into plain weights. Float32."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from workers.engine.architectures.canonical import canonical_places
from workers.engine.checks.trace import Trace, compare, in_turn, left_out, streamed, trace
from workers.engine.checks.verify import stored_tensors
from workers.engine.files.tensors import read_tensor
from workers.engine.model.loaded import in_float32, result_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel

    from workers.engine.architectures.architecture import Architecture
    from workers.engine.files.safetensors_bytes import Slice
    from workers.engine.model.loaded import LoadedModel


@dataclass(frozen=True)
class TunedTraces:
    """One window through the model's plain weights."""

    difference: float
    """Relative difference between the merged weights' outputs and the trained model's."""
    merged: Trace
    """With the merged weights before rounding."""
    as_stored: Trace
    """With the merged weights rounded to their stored type."""


def tuned_traces(
    model: PreTrainedModel,
    merged_of: Callable[[str, Tensor], Tensor],
    dense: LoadedModel,
    folder: Path,
    ids_T: Tensor,
    gone: Collection[int] = (),
) -> TunedTraces:
    """Traces of a trained model whose weights are not yet written over those in `folder`, which it was made from.
    `merged_of`: (tensor name, stored tensor in float32) -> trained tensor. `gone`: blocks that the trained model passes
    by; the one with merged weights is run without them.

    Raises ResultMismatch where the merged weights compute other outputs than the trained model.
    """
    result = in_float32(result_of(dense, folder))

    def merged(module: str, *, rounded: bool) -> dict[str, Tensor]:
        found = {}
        for name, stored in stored_tensors(result, module).items():
            exact = merged_of(name, stored.float())
            found[name] = exact.to(stored.dtype).float() if rounded else exact
        return found

    architecture = result.architecture
    opened = partial(_unrounded, model, architecture, result.slices)
    with in_turn(model, architecture.layout, range(architecture.blocks), opened):
        trained = trace(model, architecture, ids_T)
    with left_out(result.skeleton, architecture.layout, gone):
        with streamed(result, lambda module: merged(module, rounded=False)) as skeleton:
            exact = trace(skeleton, architecture, ids_T)
        with streamed(result, lambda module: merged(module, rounded=True)) as skeleton:
            as_stored = trace(skeleton, architecture, ids_T)
    within = tuple(f"{architecture.layout.block(block)}." for block in gone)
    trained = {name: shown_PD for name, shown_PD in trained.items() if not (within and name.startswith(within))}
    return TunedTraces(compare(exact, trained, architecture, "tuned model"), exact, as_stored)


@contextmanager
def _unrounded(
    model: PreTrainedModel, architecture: Architecture, slices: Mapping[str, Slice], part: str
) -> Iterator[None]:
    """Frozen weights of a part as they are stored, in float32, in place of those rounded to the compute type."""
    rounded, layout = [], architecture.layout
    module = model.get_submodule(layout.in_module(part))
    for own, tensor in (*module.named_parameters(), *module.named_buffers()):
        # Adapters hold the layer they adapt, and group layers its weight, under names of their own.
        name = layout.from_module(f"{layout.in_module(part)}.{own}".replace(".base_layer.", ".").removesuffix("_OI"))
        if part == layout.head and name not in slices:
            name = layout.as_embedding(name)
        places = canonical_places(layout, layout.in_modules, architecture.sizes, {name: tensor.shape}, strict=False)
        if {*places} <= slices.keys() and not tensor.requires_grad and tensor.dtype != torch.float32:
            rounded.append((tensor, tensor.data))
            tensor.data = tensor.data.float()
            for canonical, (_, place) in places.items():
                stored = read_tensor(slices[canonical]).to(tensor.device, torch.float32)
                if place is None:
                    tensor.data = stored
                else:
                    place.write(tensor.data, stored)
    try:
        yield
    finally:
        for tensor, data in rounded:
            tensor.data = data
