"""Heads and channels: cut out of the blocks, which get narrower, alike or not. Import-light.

The allocation says which fraction of a block goes (`widths.py`), scores say which units (`cut.py`). I = inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from workers.engine.architectures.coupled import check_alone, families
from workers.engine.architectures.per_layer import modeling_class
from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import Stat
from workers.engine.contracts.protocols import P_contra
from workers.engine.contracts.removes import Removes
from workers.engine.contracts.training import Target
from workers.engine.errors import InvalidSpec, UnsupportedModel
from workers.engine.maths.spreading import parameters
from workers.engine.registry import method_of, pruner
from workers.engine.removals.base import Edit, Mask, Prospect, Removal
from workers.engine.removals.importance_lost import importance_lost
from workers.engine.removals.narrow_blocks import NarrowBlocks
from workers.engine.removals.outcome import Outcome, config_after
from workers.engine.removals.runtimes import own_code, stock_checkpoint
from workers.engine.removals.spread import checked
from workers.engine.removals.widths import UnitPruneParams, best_units, kept_units, most_units

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.architectures.architecture import Architecture, Family
    from workers.engine.contracts.facts import AllocationFacts, LayerTask, LinearStats, Units
    from workers.engine.events import Events
    from workers.engine.files.safetensors_bytes import TensorFacts
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.report import Report, Runtime
    from workers.engine.sources.resolve import ModelSource
    from workers.engine.spec import CompressionSpec
    from workers.engine.store.clock import Clock

HEADS_CHANNELS = Removes(
    "heads_channels",
    units=("head", "channel"),
    plurals=("heads", "channels"),
    sums_weights=True,
    spread=True,
)
P = TypeVar("P", bound=UnitPruneParams)


class UnitPruner(Protocol[P_contra]):
    """`(reader, kept_I, stats, params) -> weight_OI`: the weight of the layer that reads a family's units, zero in the
    inputs that are not in the boolean `kept_I`; the others may be updated to compensate. Float32, of unchanged shape:
    the zeros are cut out afterwards."""

    def __call__(self, reader: LayerTask, kept_I: Tensor, stats: LinearStats, params: P_contra, /) -> Tensor: ...


def unit_pruner(params: type[P], *, paper: str, needs: Stat = Stat.NONE) -> Callable[[UnitPruner[P]], UnitPruner[P]]:
    """Register a pruner of heads and channels. `needs`: statistics of the inputs of the layers that read them."""
    return pruner(params, removes=HEADS_CHANNELS, paper=paper, needs=needs, updates_weights=True)


class HeadsChannels(Removal):
    removes = HEADS_CHANNELS

    def check(self, spec: CompressionSpec, source: ModelSource, architecture: Architecture) -> None:
        params, at_most = _params(spec), spec.edit.size_limit
        check_alone(architecture, source.config, source.tensors, params.units)
        if spec.trained_allocation:
            self.target(spec, source, architecture, None)
            if params.channel_multiple > 1:
                raise InvalidSpec(
                    "a training that spreads the sparsity decides on single channels",
                    "leave `channel_multiple` out, or use allocate `uniform`",
                    field="/prune/channel_multiple",
                )
        differ = len(families(architecture, source.config, source.tensors)) < 2 * architecture.blocks
        if at_most is not None and at_most.decode_time is not None and differ:
            raise UnsupportedModel(
                f"{architecture.model_type}: its blocks differ, and decode times are foreseen where all are alike",
                "bound `parameters`, `bytes` or `macs`, or give `sparsity`",
                field="/prune/at_most/decode_time",
            )

    def outcome(
        self,
        spec: CompressionSpec,
        source: ModelSource,
        architecture: Architecture,
        sparsity: Mapping[str, float] | None,
    ) -> Outcome | None:
        found = families(architecture, source.config, source.tensors)
        if sparsity is not None:
            widths = kept_units(architecture.layers, found, sparsity, _params(spec), spec.allocate)
            return NarrowBlocks(architecture.layout, range(architecture.blocks), found, widths)
        if not _alike(spec):
            modeling_class(source.config)  # refuses families that have none
        elif "head" in _params(spec).units:
            # Refuses a family whose config cannot say fewer heads, where it is not known yet how many stay.
            half = {(f.block, f.kind): f.units // (2 if f.kind == "head" else 1) or 1 for f in found}
            outcome = NarrowBlocks(architecture.layout, range(architecture.blocks), found, half)
            config_after(source.config, outcome, source)
        return None

    def width_multiple(self, spec: CompressionSpec) -> int:
        return _params(spec).channel_multiple

    def warnings(self, spec: CompressionSpec, prospect: Prospect) -> list[str]:
        if prospect.outcome is not None:
            return super().warnings(spec, prospect)
        if _alike(spec):
            return ["how narrow the blocks become follows from times that the job measures: another run may differ"]
        return ["widths follow from what the job measures: blocks will differ, and need the shipped modelling file"]

    def runtimes(self, spec: CompressionSpec, outcome: Outcome | None) -> list[Runtime]:
        alike = _alike(spec) if outcome is None else outcome.uniform
        return stock_checkpoint(self.smaller) if alike else own_code()

    def families(
        self,
        spec: CompressionSpec,
        architecture: Architecture,
        config: Mapping[str, Any],
        tensors: Mapping[str, TensorFacts],
    ) -> Sequence[Family]:
        return families(architecture, config, tensors)

    def spread(self, spec: CompressionSpec, facts: AllocationFacts, target: float) -> Mapping[str, float]:
        """Protected blocks lose nothing, the others as much more. Raises InvalidSpec where they cannot."""
        params = _params(spec)
        last = max(layer.block for layer in facts.layers) - params.protect_last
        layers = [layer for layer in facts.layers if params.protect_first <= layer.block <= last]
        if not target:
            return {layer.name: 0.0 for layer in facts.layers}
        share = target * parameters(facts.layers) / max(1, parameters(layers))
        if not layers or share >= 1:
            raise InvalidSpec(
                f"{len({layer.block for layer in layers})} blocks are not protected: too few to lose {target:.0%} of "
                "all parameters",
                "protect fewer blocks, or lower the sparsity",
                field="/prune/sparsity",
            )
        found = checked(spec.allocate, replace(facts, layers=layers), share)
        return {layer.name: found.get(layer.name, 0.0) for layer in facts.layers}

    def target(
        self,
        spec: CompressionSpec,
        source: ModelSource,
        architecture: Architecture,
        sparsity: Mapping[str, float] | None,
    ) -> Target:
        params = _params(spec)
        found = families(architecture, source.config, source.tensors)
        may_go = [family for family in found if family.kind in params.units]
        if sparsity is None:
            return _free(params, may_go, architecture, spec.allocate.most_of_units)
        widths = kept_units(architecture.layers, found, sparsity, params, spec.allocate)
        going: dict[tuple[int | None, str], int] = {
            (family.block, family.kind): family.units - widths[family.block, family.kind] for family in may_go
        }
        gone = sum(going[family.block, family.kind] * family.unit_parameters for family in may_go)
        return Target(gone / architecture.prunable_parameters, may_go, going)

    def allocated(self, spec: CompressionSpec, units: Units | None) -> Units | None:
        return units and units.of_kinds(_params(spec).units)

    def decode_time(
        self, spec: CompressionSpec, model: LoadedModel, resident: bool, events: Events
    ) -> Callable[[Outcome], float]:
        from workers.engine.removals.decode_times import latency_table

        table = latency_table(model, needed(spec.edit.size_limit, "/prune/at_most"), resident, *timed(model))
        table.log(events)
        return lambda outcome: table.decode_time(_narrow(outcome).widths)

    def edit(
        self,
        spec: CompressionSpec,
        model: LoadedModel,
        units: Units | None,
        sparsity: Mapping[str, float],
        clock: Clock,
    ) -> Edit:
        from workers.engine.removals.cut import cut_by_pruner

        units = needed(units, "the units' scores")
        outcome = _narrow(self.outcome(spec, model.source, model.architecture, sparsity))
        return cut_by_pruner(outcome, units.families, spec, _kept(units, outcome))

    def mask(self, spec: CompressionSpec, model: LoadedModel, units: Units | None, outcome: Outcome) -> Mask:
        units = needed(units, "the units' scores")
        return Mask(inputs_left(units.families, _kept(units, _narrow(outcome)), model.source.tensors))

    def went(self, report: Report, share: str) -> str:
        return (
            f"{share} of the weights of {len(report.layers)} linear layers were cut off, {report.parameters:,} "
            f"parameters became {report.parameters_after or 0:,}"
        )

    def importance_lost(
        self, spec: CompressionSpec, architecture: Architecture, units: Units | None, outcome: Outcome, target: float
    ) -> tuple[float, float] | None:
        if units is None or not outcome.uniform:
            return None
        return importance_lost(spec, _params(spec), architecture, units, _narrow(outcome), target)


REMOVAL = HeadsChannels()


def timed(model: LoadedModel) -> tuple[dict[str, list[int]], Callable[[str, int], Outcome]]:
    """(kind -> numbers of units whose decode steps are timed, a function that gives the few blocks with so many)."""
    from workers.engine.removals.decode_times import LEVELS, MOST_BLOCKS

    blocks = range(min(MOST_BLOCKS, model.architecture.blocks))
    found = families(model.architecture, model.source.config, model.source.tensors)
    cut = [family for family in found if family.block in blocks]
    kinds = {family.kind: family.units for family in cut}  # all blocks are alike

    def outcome(kind: str, units: int) -> Outcome:
        widths = {(f.block, f.kind): units if f.kind == kind else f.units for f in cut}
        return NarrowBlocks(model.architecture.layout, blocks, cut, widths)

    counts = {kind: sorted({max(1, round(level * units)) for level in LEVELS}) for kind, units in kinds.items()}
    return counts, outcome


def _params(spec: CompressionSpec) -> UnitPruneParams:
    assert isinstance(spec.prune, UnitPruneParams)  # its pruner says so
    return spec.prune


def _narrow(outcome: Outcome | None) -> NarrowBlocks:
    assert isinstance(outcome, NarrowBlocks)  # made here, of a known sparsity
    return outcome


def _alike(spec: CompressionSpec) -> bool:
    """Whether all blocks will lose the same fraction, whatever it is."""
    params = _params(spec)
    return method_of("allocate", spec.allocate).even and not (params.protect_first or params.protect_last)


def inputs_left(
    families: Sequence[Family], kept: Mapping[tuple[int, str], Sequence[int]], tensors: Mapping[str, TensorFacts]
) -> dict[str, list[int]]:
    """Tensor of the layer that reads a family -> its inputs of the units that stay, of every family in `kept`.
    `tensors`: the dense model's."""
    found: dict[str, list[int]] = {}
    for family in families:
        if (units := kept.get((family.block, family.kind))) is not None:
            width = tensors[family.reader.tensor].shape[1] // family.units
            found[family.reader.tensor] = [unit * width + offset for unit in units for offset in range(width)]
    return found


def _free(params: UnitPruneParams, may_go: Sequence[Family], architecture: Architecture, most: float) -> Target:
    """The target of a training that spreads the sparsity. Raises InvalidSpec where the units cannot amount to it."""
    share, last = needed(params.target, "/prune/sparsity"), architecture.blocks - 1 - params.protect_last
    free = [family for family in may_go if params.protect_first <= family.block <= last]
    least: dict[tuple[int | None, str], int] = {
        (family.block, family.kind): family.units - most_units(family.units, most) for family in free
    }
    able = sum((family.units - least[family.block, family.kind]) * family.unit_parameters for family in free)
    able_share = able / architecture.prunable_parameters
    if able_share < share:
        raise InvalidSpec(
            f"{share:.1%} of the parameters are to go, and at most {able_share:.1%} can: `most` lets at most {most:g} "
            "of a kind go in a block, and one stays",
            "lower the sparsity, raise `most`, let heads and channels go, or protect fewer blocks",
            field="/prune/sparsity",
        )
    smallest = min((family.unit_parameters for family in free), default=0)
    if 0 < 2 * share * architecture.prunable_parameters < smallest:
        raise InvalidSpec(
            f"{share:.1g} of the parameters are less than half of the smallest unit, which has {smallest}: nothing "
            "would go, so there is nothing to decide on in training",
            "raise the sparsity, or leave `train` out and use `tune`",
            field="/prune/sparsity",
        )
    return Target(share, free, least=least)


def _kept(units: Units, outcome: NarrowBlocks) -> dict[tuple[int, str], list[int]]:
    """(block, kind) -> units that stay, ascending: all of a family without scores, of which none go."""
    kept = {(family.block, family.kind): list(range(family.units)) for family in outcome.families}
    return kept | {
        (family.block, family.kind): best_units(units.of(family), outcome.widths[family.block, family.kind])
        for family in units.families
    }
