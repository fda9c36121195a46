"""Rewrite: the blocks that stay, whole or without some hidden dimensions, under their new numbers. Reads no text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from workers.engine.model.loaded import block_tensors, outside_tensors
from workers.engine.registry import method_of
from workers.engine.removals.stored import as_stored

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from workers.engine.architectures.architecture import Layout
    from workers.engine.contracts.facts import Units
    from workers.engine.events import Events
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.spec import CompressionSpec
    from workers.engine.store.checkpoint import Checkpoint

    Change = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


def dropping(spec: CompressionSpec, model: LoadedModel, units: Units) -> Mapping[str, float]:
    """Layer name -> 1 in the blocks that go by their scores, else 0."""
    scores = [block["layer"][0] for block in units.scores]
    kept = method_of("prune", spec.prune).function(scores, spec.prune)
    return {layer.name: float(layer.block not in kept) for layer in model.architecture.layers}


def kept_dimensions(spec: CompressionSpec, units: Units) -> list[int]:
    """The hidden dimensions that stay: each is worth what it is to all blocks together."""
    scores = [math.fsum(values) for values in zip(*(block["hidden"] for block in units.scores), strict=True)]
    kept: list[int] = method_of("prune", spec.prune).function(scores, spec.prune)
    return kept


def without_dimensions(spec: CompressionSpec, layout: Layout, kept: Sequence[int], of: int) -> Change:
    """Cuts all but the `kept` of `of` hidden dimensions out of tensors, and raises the gains of their norms.

    K of D dimensions have sqrt(D / K) times the root mean square that D with zeros in the others have; the config's
    `rms_norm_eps` goes up by D / K, which makes that exact. The raised gains are rounded once, to the type that ships.
    """
    index = torch.tensor(kept)
    gain = math.sqrt(of / len(kept))

    def cut(name: str, tensor: Tensor) -> Tensor:
        axis = layout.hidden_axis(name)
        if axis is None:
            return tensor
        left = tensor.index_select(axis, index.to(tensor.device))
        if not layout.is_hidden_norm(name):
            return left
        raised = left.float() * gain
        return raised if spec.package.dtype != "source" else raised.to(left.dtype)

    return lambda tensors: {name: cut(name, tensor) for name, tensor in tensors.items()}


def rewrite(
    spec: CompressionSpec,
    model: LoadedModel,
    kept: Sequence[int],
    change: Change,
    *,
    checkpoint: Checkpoint,
    events: Events,
) -> int:
    """Write the blocks that stay into the checkpoint. Returns how many were found done. Raises NumericalFailure."""
    if not checkpoint.outside().exists():
        checkpoint.save_outside(as_stored(spec, change(outside_tensors(model))))
    start, layout = checkpoint.finished_blocks(), model.architecture.layout
    if start:
        events.resume(start)
    for index in range(start, len(kept)):
        tensors = change(block_tensors(model, kept[index]))
        renumbered = {layout.in_block(name, index): tensor for name, tensor in tensors.items()}
        checkpoint.save_block(index, as_stored(spec, renumbered))
        events.checkpoint(index)
        events.progress(index + 1, len(kept), "block")
    return start
