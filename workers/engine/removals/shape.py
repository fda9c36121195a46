"""Shape: heads, channels, hidden dimensions and blocks go together, down to sizes given by hand. Import-light.

The removals of each kind do the work: their structures, edits and masks are combined here. All units are chosen by
their scores at once; nothing makes up for what went, so no text is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from workers.engine.architectures.coupled import block_families, check_alone, families, hidden_families
from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import PruneMethodParams, Unit
from workers.engine.contracts.protocols import P_contra
from workers.engine.contracts.removes import Removes
from workers.engine.contracts.training import Target
from workers.engine.errors import InvalidSpec, UnsupportedModel
from workers.engine.registry import pruner
from workers.engine.removals.base import Edit, Mask, Prospect, Removal, Scores
from workers.engine.removals.blocks import REMOVAL as BLOCKS
from workers.engine.removals.blocks import check_left
from workers.engine.removals.heads_channels import inputs_left
from workers.engine.removals.hidden import CutDimensions, NarrowModel, dimension_scores, gain_warnings
from workers.engine.removals.narrow_blocks import NarrowBlocks
from workers.engine.removals.outcome import Outcome
from workers.engine.removals.spread import sparsity_of_left

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.architectures.architecture import Architecture, Family, LinearFacts
    from workers.engine.contracts.facts import LinearStats, Units
    from workers.engine.contracts.params import MethodParams
    from workers.engine.files.safetensors_bytes import TensorFacts
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.report import Report
    from workers.engine.sources.resolve import ModelSource
    from workers.engine.spec import CompressionSpec
    from workers.engine.store.clock import Clock

SHAPE = Removes(
    "shape",
    units=("hidden", "head", "layer", "channel"),
    plurals=("hidden dimensions", "heads", "layers", "channels"),
)
FIELDS = {"hidden": "hidden", "head": "heads", "layer": "layers", "channel": "channels"}
"""Kind of unit -> field of the spec that says how many stay."""
_WITHIN_BLOCKS = ("head", "channel")
_PLURALS = dict(zip(SHAPE.units, SHAPE.plurals, strict=True))


class ShapePruneParams(PruneMethodParams):
    """Base of the parameters of pruners to a shape. A size is None where nothing of its kind goes."""

    hidden: int | None
    heads: int | None
    """Query heads of a block."""
    layers: int | None
    channels: int | None

    @property
    def sizes(self) -> dict[Unit, int]:
        """Kind of unit -> how many stay, of those that go."""
        return {kind: size for kind, name in FIELDS.items() if (size := getattr(self, name)) is not None}

    @property
    def kinds(self) -> tuple[Unit, ...]:
        return tuple(self.sizes)


P = TypeVar("P", bound=ShapePruneParams)


class ShapePruner(Protocol[P_contra]):
    """`(scores, count, params) -> kept`: the `count` units that stay of one kind, ascending, from a score for each."""

    def __call__(self, scores: Sequence[float], count: int, params: P_contra, /) -> list[int]: ...


def shape_pruner(params: type[P], *, paper: str) -> Callable[[ShapePruner[P]], ShapePruner[P]]:
    """Register a pruner to a shape."""
    return pruner(params, removes=SHAPE, paper=paper)


@dataclass(frozen=True)
class SmallerModel(Outcome):
    """Structure of a result that is smaller in several ways."""

    parts: Sequence[Outcome]
    """One for each way, of the same blocks."""

    cut: ClassVar[bool] = True
    field: ClassVar[str] = "/prune"

    def narrow(self, shapes: dict[str, list[int]]) -> None:
        for part in self.parts:
            part.narrow(shapes)

    def entries(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {name: entry for part in self.parts for name, entry in part.entries(config).items()}


@dataclass(frozen=True)
class CutInTurn(Edit):
    """Cuts by one edit after the other."""

    parts: Sequence[Edit]

    def outside(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        for part in self.parts:
            tensors = part.outside(tensors)
        return tensors

    def prune_stream(
        self, layers: Sequence[LinearFacts], dense: Mapping[str, Tensor], stats: LinearStats
    ) -> dict[str, Tensor]:
        found = super().prune_stream(layers, dense, stats)
        for part in self.parts:
            found = part.prune_stream(layers, {**dense, **found}, stats)
        return found

    def finish_block(self, block: int, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        for part in self.parts:
            tensors = part.finish_block(block, tensors)
        return tensors


@dataclass(frozen=True)
class _Kept:
    """The units that stay, ascending."""

    blocks: Sequence[int]
    units: Mapping[tuple[int, str], Sequence[int]]
    """(block that stays, kind) -> heads or channels, of kinds that go."""
    dimensions: Sequence[int] | None
    """None where all stay."""


class Shape(Removal):
    removes = SHAPE
    smaller = "a smaller shape"
    gentler = "keep more"
    draws_widths = False  # the same in all blocks

    def check(self, spec: CompressionSpec, source: ModelSource, architecture: Architecture) -> None:
        sizes = _params(spec).sizes
        for kind in (kind for kind in sizes if kind in _WITHIN_BLOCKS):
            with _naming(kind):
                check_alone(architecture, source.config, source.tensors, [kind])
        found = self.families(spec, architecture, source.config, source.tensors)
        if "layer" in sizes:
            with _naming("layer"):
                BLOCKS.check(spec, source, architecture)
        for kind, size in sizes.items():
            _check_size(kind, size, architecture, [family for family in found if family.kind == kind])
        check_left(spec, architecture, sizes.get("layer", architecture.blocks))

    def outcome(
        self,
        spec: CompressionSpec,
        source: ModelSource,
        architecture: Architecture,
        sparsity: Mapping[str, float] | None,
    ) -> Outcome:
        found = self.families(spec, architecture, source.config, source.tensors)
        return _outcome(spec, architecture, found, range(_params(spec).sizes.get("layer", architecture.blocks)))

    def warnings(self, spec: CompressionSpec, prospect: Prospect) -> list[str]:
        outcome, source = needed(prospect.outcome, "the structure of a shape"), prospect.source
        found = [
            warning
            for part in (outcome.parts if isinstance(outcome, SmallerModel) else ())
            if isinstance(part, NarrowModel)
            for warning in gain_warnings(spec, source, part)
        ]
        if outcome.parameters(source.tensors) == {name: facts.parameters for name, facts in source.tensors.items()}:
            found.append("the model has this shape: nothing goes")
        return found

    def of_whole(self, spec: CompressionSpec, prospect: Prospect, share: float) -> str | None:
        return None if _params(spec).hidden is not None else super().of_whole(spec, prospect, share)

    def families(
        self,
        spec: CompressionSpec,
        architecture: Architecture,
        config: Mapping[str, Any],
        tensors: Mapping[str, TensorFacts],
    ) -> Sequence[Family]:
        """Those of the kinds that go."""
        kinds = _params(spec).kinds
        found: list[Family] = []
        if {*_WITHIN_BLOCKS} & {*kinds}:
            found += [family for family in families(architecture, config, tensors) if family.kind in kinds]
        if "hidden" in kinds:
            with _naming("hidden"):
                found += hidden_families(architecture, config, tensors)
        if "layer" in kinds:
            found += block_families(architecture)
        return found

    def protect(self, params: MethodParams, scores: Scores) -> None:
        BLOCKS.protect(params, scores)

    def target(
        self,
        spec: CompressionSpec,
        source: ModelSource,
        architecture: Architecture,
        sparsity: Mapping[str, float] | None,
    ) -> Target:
        share = self.outcome(spec, source, architecture, sparsity).share_gone(architecture, source.tensors)
        found = self.families(spec, architecture, source.config, source.tensors)
        going: dict[tuple[int | None, str], int] = {
            (family.block, family.kind): family.units - _count(spec, architecture, family)
            for family in found
            if family.kind in _WITHIN_BLOCKS
        }
        dense, sizes = {"hidden": architecture.hidden_size, "layer": architecture.blocks}, _params(spec).sizes
        going |= {(None, kind): dense[kind] - sizes[kind] for kind in dense if kind in sizes}
        return Target(share, found, going)

    def sparsity(
        self, spec: CompressionSpec, architecture: Architecture, units: Units | None
    ) -> Mapping[str, float] | None:
        """The fraction that the kinds which a layer reads and writes lose; 1 in the blocks that go."""
        if units is None:
            return None
        blocks = _kept(spec, architecture, units).blocks
        left = {
            (family.block, family.kind): _count(spec, architecture, family) / family.units for family in units.families
        }
        left |= {(block, "layer"): float(block in blocks) for block in range(architecture.blocks)}
        return sparsity_of_left(architecture.layers, left)

    def edit(
        self,
        spec: CompressionSpec,
        model: LoadedModel,
        units: Units | None,
        sparsity: Mapping[str, float],
        clock: Clock,
    ) -> Edit:
        from workers.engine.removals.cut import CutUnits

        units = needed(units, "the units' scores")
        kept = _kept(spec, model.architecture, units)
        outcome = _outcome(spec, model.architecture, units.families, kept.blocks)
        parts: list[Edit] = []
        for part in outcome.parts if isinstance(outcome, SmallerModel) else ():
            if isinstance(part, NarrowBlocks):
                parts.append(
                    CutUnits(part, part.families, spec, kept.units, lambda task, kept_I, _: task.weight_OI * kept_I)
                )
            if isinstance(part, NarrowModel):
                dimensions = needed(kept.dimensions, "the hidden dimensions that stay")
                parts.append(CutDimensions(part, dimensions, spec.package.dtype != "source"))
        return CutInTurn(outcome, parts)

    def mask(self, spec: CompressionSpec, model: LoadedModel, units: Units | None, outcome: Outcome) -> Mask:
        units = needed(units, "the units' scores")
        kept = _kept(spec, model.architecture, units)
        inputs = inputs_left(units.families, kept.units, model.source.tensors)
        return Mask(inputs=inputs, dimensions=kept.dimensions)

    def went(self, report: Report, share: str) -> str:
        asked = report.spec["prune"]
        shape = ", ".join(f"{size:,} {_PLURALS[kind]}" for kind, name in FIELDS.items() if (size := asked[name]))
        return f"the model was cut to {shape}, {report.parameters:,} parameters became {report.parameters_after or 0:,}"


REMOVAL = Shape()


def _params(spec: CompressionSpec) -> ShapePruneParams:
    assert isinstance(spec.prune, ShapePruneParams)  # its pruner says so
    return spec.prune


@contextmanager
def _naming(kind: str) -> Iterator[None]:
    """Let the refusal of a kind of unit name the spec's field."""
    try:
        yield
    except UnsupportedModel as error:
        raise UnsupportedModel(
            error.message, f"leave `{FIELDS[kind]}` out of the shape", field=f"/prune/{FIELDS[kind]}"
        ) from error


def _queries(architecture: Architecture, family: Family) -> int:
    """Query heads that share a key/value head."""
    (reader,) = architecture.reading("head", family.block)
    values = architecture.caching(family.block)[-1]
    return reader.shape[1] // values.shape[0]


def _check_size(kind: str, size: int, architecture: Architecture, found: Sequence[Family]) -> None:
    """Refuse more than there is, blocks that differ, and parts of a key/value group: InvalidSpec, UnsupportedModel."""
    field, dense = f"/prune/{FIELDS[kind]}", {_dense_size(architecture, family) for family in found}
    if kind == "layer":
        dense = {architecture.blocks}
    if len(dense) > 1:
        raise UnsupportedModel(
            f"{architecture.model_type}: its blocks have different numbers of {_PLURALS[kind]}, from {min(dense)} to "
            f"{max(dense)}",
            f"leave `{FIELDS[kind]}` out of the shape",
            field=field,
        )
    (most,) = dense
    if size > most:
        raise InvalidSpec(
            f"the shape has {size:,} {_PLURALS[kind]}, and the model {most:,}: nothing is added",
            f"give at most {most}, or leave it out",
            field=field,
        )
    group = _queries(architecture, found[0]) if kind == "head" else 1
    if size % group:
        raise InvalidSpec(
            f"the shape has {size} heads, and {group} query heads of the model share a key/value head and go together",
            f"give a multiple of {group}",
            field=field,
        )


def _dense_size(architecture: Architecture, family: Family) -> int:
    """The units of a family, as the spec counts them."""
    return family.units * (_queries(architecture, family) if family.kind == "head" else 1)


def _count(spec: CompressionSpec, architecture: Architecture, family: Family) -> int:
    """The units of a family that stay, where it is in a block that stays."""
    size = _params(spec).sizes[family.kind]
    if family.kind == "head":
        return size // _queries(architecture, family)
    return family.units if family.kind == "layer" else size


def _outcome(
    spec: CompressionSpec, architecture: Architecture, found: Sequence[Family], blocks: Sequence[int]
) -> Outcome:
    """The structure of a result that has these blocks of the dense model."""
    layout, params, parts = architecture.layout, _params(spec), list[Outcome]()
    within = [family for family in found if family.kind in _WITHIN_BLOCKS]
    if within:
        widths = {(family.block, family.kind): _count(spec, architecture, family) for family in within}
        parts.append(NarrowBlocks(layout, blocks, within, widths))
    if params.hidden is not None:
        parts.append(NarrowModel(layout, blocks, params.hidden, architecture.hidden_size))
    return SmallerModel(layout, blocks, parts) if parts else Outcome(layout, blocks)


def _kept(spec: CompressionSpec, architecture: Architecture, units: Units) -> _Kept:
    """The units that stay by their scores: of hidden dimensions, the sum over the blocks that stay."""
    sizes, scores = _params(spec).sizes, units.scores

    def best(values: Sequence[float], count: int) -> list[int]:
        found: list[int] = spec.editor.function(values, count, spec.edit)
        return found

    blocks: Sequence[int] = range(architecture.blocks)
    if "layer" in sizes:
        blocks = best([block["layer"][0] for block in scores], sizes["layer"])
    within = [family for family in units.families if family.kind in _WITHIN_BLOCKS and family.block in blocks]
    kept = {(f.block, f.kind): best(units.of(f), _count(spec, architecture, f)) for f in within}
    dimensions = None
    if "hidden" in sizes:
        dimensions = best(dimension_scores([scores[block] for block in blocks]), sizes["hidden"])
    return _Kept(blocks, kept, dimensions)
