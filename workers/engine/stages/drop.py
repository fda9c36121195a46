"""Drop: the decoder blocks that stay, under their new numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.engine.architectures.llama import BLOCKS
from workers.engine.registry import method_of
from workers.engine.stages.load import outside_tensors, tensors_of
from workers.engine.stages.stored import as_stored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from workers.engine.checkpoint import Checkpoint
    from workers.engine.events import Events
    from workers.engine.spec import CompressionSpec
    from workers.engine.stages.load import LoadedModel
    from workers.engine.stats import Units


def dropping(spec: CompressionSpec, model: LoadedModel, units: Units) -> Mapping[str, float]:
    """Layer name -> 1 in the blocks that go by their scores, else 0."""
    scores = [block["layer"][0] for block in units.scores]
    kept = method_of("prune", spec.prune).function(scores, spec.prune)
    return {layer.name: float(layer.block not in kept) for layer in model.architecture.layers}


def drop(
    spec: CompressionSpec, model: LoadedModel, kept: Sequence[int], *, checkpoint: Checkpoint, events: Events
) -> int:
    """Write the blocks that stay into the checkpoint. Returns how many were found done. Raises NumericalFailure."""
    if not checkpoint.outside().exists():
        checkpoint.save_outside(as_stored(spec, outside_tensors(model)))
    start = checkpoint.finished_blocks()
    if start:
        events.resume(start)
    for index in range(start, len(kept)):
        old, new = f"{BLOCKS}.{kept[index]}.", f"{BLOCKS}.{index}."
        tensors = tensors_of(model, old.rstrip("."))
        checkpoint.save_block(index, as_stored(spec, {name.replace(old, new, 1): t for name, t in tensors.items()}))
        events.checkpoint(index)
        events.progress(index + 1, len(kept), "block")
    return start
