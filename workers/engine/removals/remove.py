"""Remove: what the allocation asks for, out of every block into the checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.engine.removals.cut import unit_surgeon
from workers.engine.removals.outcome import Outcome, config_after
from workers.engine.removals.rewrite import kept_dimensions, rewrite, without_dimensions
from workers.engine.removals.weights import WeightSurgeon
from workers.engine.stages.prune import prune

if TYPE_CHECKING:
    from workers.engine.contracts.facts import Allocation, Units
    from workers.engine.events import Events
    from workers.engine.model.calibration import Calibration
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.spec import CompressionSpec
    from workers.engine.store.checkpoint import Checkpoint
    from workers.engine.store.clock import Clock


def remove(
    spec: CompressionSpec,
    model: LoadedModel,
    calibration: Calibration | None,
    units: Units | None,
    allocation: Allocation,
    *,
    checkpoint: Checkpoint,
    clock: Clock,
    events: Events,
) -> tuple[Outcome, int]:
    """The structure of the result, and how many of its blocks were found done.

    Raises NumericalFailure, and InvalidSpec or UnsupportedModel where the structure is not to be had.
    """
    blocks, layout = range(model.architecture.blocks), model.architecture.layout
    if spec.removes == "layer":
        kept = [block for block in blocks if not allocation.sparsity[model.architecture.block(block)[0].name]]
        return Outcome(layout, kept), rewrite(
            spec, model, kept, lambda tensors: tensors, checkpoint=checkpoint, events=events
        )
    if spec.removes == "hidden":
        assert units is not None  # they are scored
        dimensions, of = kept_dimensions(spec, units), model.architecture.hidden_size
        outcome = Outcome(layout, blocks, hidden=(len(dimensions), of))
        change = without_dimensions(spec, model.architecture.layout, dimensions, of)
        return outcome, rewrite(spec, model, blocks, change, checkpoint=checkpoint, events=events)
    if spec.removes == "unit":
        assert units is not None  # they are scored
        surgeon = unit_surgeon(spec, model, units, allocation.sparsity)
        outcome = Outcome(layout, blocks, units.families, surgeon.widths)
        config_after(model.source.config, outcome)  # refuses what no config can say, before the work
        return outcome, prune(spec, model, calibration, surgeon, checkpoint=checkpoint, clock=clock, events=events)
    weights = WeightSurgeon(spec, allocation.sparsity, clock)
    resumed = prune(spec, model, calibration, weights, checkpoint=checkpoint, clock=clock, events=events)
    return Outcome(layout, blocks), resumed
