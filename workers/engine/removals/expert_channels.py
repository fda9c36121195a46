"""Channels of experts: every expert of every mixture gets narrower, each by channels of its own. Import-light.

All experts of a model keep as many, as its config says one width for all; the MLP of all tokens beside them (the shared
expert) has a width of its own where the config says one. Scores say which channels of an expert stay, compared within
it alone. I = inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from workers.engine.architectures.expert_widths import EXPERT, PLAIN, SHARED, entries, mixture_families
from workers.engine.architectures.mixtures import mixtures
from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import CountedPruneParams, Stat
from workers.engine.contracts.removes import Removes
from workers.engine.errors import InvalidSpec, UnsupportedModel
from workers.engine.registry import pruner
from workers.engine.removals.base import Edit, Mask, Prospect, Removal
from workers.engine.removals.heads_channels import UnitPruner, inputs_left
from workers.engine.removals.narrow_blocks import Narrow
from workers.engine.removals.outcome import Outcome
from workers.engine.removals.spread import sparsity_of_left
from workers.engine.removals.widths import best_units, multiples

if TYPE_CHECKING:
    from workers.engine.architectures.architecture import Architecture, Family, LinearFacts
    from workers.engine.contracts.facts import Units
    from workers.engine.events import Events
    from workers.engine.files.safetensors_bytes import TensorFacts
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.report import Report
    from workers.engine.sources.resolve import ModelSource
    from workers.engine.spec import CompressionSpec
    from workers.engine.store.clock import Clock

EXPERT_CHANNELS = Removes(
    "expert_channels",
    units=("expert_channel",),
    plurals=("channels of experts",),
    sums_weights=True,
    not_spread="one width for the experts of all blocks, as the configs of their families do",
)
ALIGNED = 8
"""Channels kept are a multiple of this: transformers computes experts by grouped products, which refuse rows of other
than multiples of 16 bytes, eight weights of 16 bits."""


class ExpertWidthParams(CountedPruneParams):
    """Base of the parameters of pruners that make experts narrower."""

    @property
    def multiple(self) -> int:
        """Where a size is to be fitted into, a multiple of this stays."""
        raise NotImplementedError

    def kept(self, channels: int) -> int:
        """How many channels of an expert of so many stay."""
        raise NotImplementedError

    def kept_shared(self, channels: int, kept: int, of: int) -> int:
        """How many of a shared MLP of so many stay, where `kept` `of` each expert's do."""
        raise NotImplementedError


P = TypeVar("P", bound=ExpertWidthParams)


def expert_width_pruner(
    params: type[P], *, paper: str, needs: Stat = Stat.NONE
) -> Callable[[UnitPruner[P]], UnitPruner[P]]:
    """Register a pruner of experts' channels. `needs`: statistics of the inputs of the layers that read them."""
    return pruner(params, removes=EXPERT_CHANNELS, paper=paper, needs=needs, updates_weights=True)


@dataclass(frozen=True)
class NarrowExperts(Narrow):
    """Structure of a result with narrower experts."""

    entry_of: Mapping[str, str]
    """Kind of unit -> the config entry that says how many there are, of several kinds perhaps the experts'."""

    says_head_dim: ClassVar[bool] = False
    field: ClassVar[str] = "/prune"

    def entries(self, config: Mapping[str, Any]) -> dict[str, Any]:
        left = {_kind(family): self.widths[family.block, family.kind] for family in self.families}
        own = {entry: left[kind] for kind, entry in self.entry_of.items()}
        return own | {self.entry_of[EXPERT]: left[EXPERT]}


class ExpertChannels(Removal):
    removes = EXPERT_CHANNELS
    smaller = "narrower experts"
    draws_widths = False  # heads are as wide as they were

    def check(self, spec: CompressionSpec, source: ModelSource, architecture: Architecture) -> None:
        if not mixtures(architecture):
            raise UnsupportedModel(
                f"{architecture.model_type}: its blocks have no experts",
                "remove channels with `structured`, blocks with `depth`, or weights",
                field="/prune",
            )
        said, width = entries(architecture, source.config, source.tensors), _width(architecture)
        found = mixture_families(architecture, said, source.tensors)
        for kind in (EXPERT, SHARED, PLAIN):
            widths = {family.units for family in found if _kind(family) == kind}
            if len(widths) > 1:
                raise UnsupportedModel(
                    f"{architecture.model_type}: its {_WHOSE[kind]} have different widths, from {min(widths)} to "
                    f"{max(widths)}",
                    "drop whole experts with `experts`, or remove weights",
                    field="/prune",
                )
        if _params(spec).undecided:
            return
        kept = _params(spec).kept(width)
        for family in {_kind(family): family for family in found}.values():
            _check_width(family, _stay(spec, family, width), kept, width, said)
        if kept % ALIGNED and kept < width:
            up, down = -(-kept // ALIGNED) * ALIGNED, kept // ALIGNED * ALIGNED
            raise InvalidSpec(
                f"{kept} channels of an expert are no multiple of {ALIGNED}: grouped products, by which transformers "
                "computes experts, take no other",
                f"keep {up if up <= width else down or width}",
                field="/prune/channels",
            )

    def outcome(
        self,
        spec: CompressionSpec,
        source: ModelSource,
        architecture: Architecture,
        sparsity: Mapping[str, float] | None,
    ) -> NarrowExperts | None:
        if _params(spec).undecided:
            return None
        said, width = entries(architecture, source.config, source.tensors), _width(architecture)
        found = mixture_families(architecture, said, source.tensors)
        widths = {(family.block, family.kind): _stay(spec, family, width) for family in found}
        return NarrowExperts(architecture.layout, range(architecture.blocks), found, widths, said)

    def counts(self, spec: CompressionSpec, source: ModelSource, architecture: Architecture) -> Sequence[int]:
        """How many channels of each expert stay."""
        return multiples(_width(architecture), _params(spec).multiple)

    def width_multiple(self, spec: CompressionSpec) -> int:
        return _params(spec).multiple

    def warnings(self, spec: CompressionSpec, prospect: Prospect) -> list[str]:
        if prospect.outcome is None:
            return ["how narrow the experts become follows from times that the job measures: another run may differ"]
        return []  # exactly as many go as are asked for

    def looks_at(self, spec: CompressionSpec, layer: LinearFacts) -> bool:
        return layer.reads in (EXPERT, SHARED)

    def families(
        self,
        spec: CompressionSpec,
        architecture: Architecture,
        config: Mapping[str, Any],
        tensors: Mapping[str, TensorFacts],
    ) -> Sequence[Family]:
        return mixture_families(architecture, entries(architecture, config, tensors), tensors)

    def sparsity(
        self, spec: CompressionSpec, architecture: Architecture, units: Units | None
    ) -> Mapping[str, float] | None:
        if units is None or _params(spec).undecided:
            return None
        width = _width(architecture)
        left = {(family.block, _kind(family)): _stay(spec, family, width) / family.units for family in units.families}
        return sparsity_of_left(architecture.layers, left)

    def decode_time(
        self, spec: CompressionSpec, model: LoadedModel, resident: bool, events: Events
    ) -> Callable[[Outcome], float]:
        from workers.engine.removals.decode_times import MOST_BLOCKS, latency_table, levels

        architecture = model.architecture
        blocks = [mixture.block for mixture in mixtures(architecture)]
        wanted, width = levels(self.counts(spec, model.source, architecture)), _width(architecture)

        def outcome(kind: str, channels: int) -> Outcome:
            cut = self.outcome(spec.with_count(channels), model.source, architecture, None)
            return replace(needed(cut, "the width of experts"), blocks=blocks[:MOST_BLOCKS])

        table = latency_table(
            model, needed(spec.edit.size_limit, "/prune/at_most"), resident, {EXPERT: wanted}, outcome
        )
        table.log(events)
        dense = {(block, EXPERT): width for block in range(architecture.blocks)}
        return lambda cut: table.decode_time(dense | {(block, EXPERT): _experts_width(cut) for block in blocks})

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
        outcome = needed(self.outcome(spec, model.source, model.architecture, sparsity), "the width of experts")
        return cut_by_pruner(outcome, units.families, spec, _kept(spec, model.architecture, units))

    def mask(self, spec: CompressionSpec, model: LoadedModel, units: Units | None, outcome: Outcome) -> Mask:
        units = needed(units, "the units' scores")
        return Mask(inputs_left(units.families, _kept(spec, model.architecture, units), model.source.tensors))

    def went(self, report: Report, share: str) -> str:
        readers = [layer for layer in report.layers if layer.reads == EXPERT]
        kept, dense = readers[0].shape[1], readers[0].parameters // readers[0].shape[0]
        blocks = len({layer.block for layer in readers})
        return (
            f"{kept} of {dense} channels stay of each of {len(readers) // blocks} experts of {blocks} blocks: "
            f"{report.parameters:,} parameters became {report.parameters_after or 0:,}"
        )


REMOVAL = ExpertChannels()
_WHOSE = {EXPERT: "experts", SHARED: "shared MLPs", PLAIN: "MLPs without experts"}


def _experts_width(outcome: Outcome) -> int:
    assert isinstance(outcome, NarrowExperts)  # made here
    return next(outcome.widths[family.block, family.kind] for family in outcome.families if _kind(family) == EXPERT)


def _params(spec: CompressionSpec) -> ExpertWidthParams:
    assert isinstance(spec.prune, ExpertWidthParams)  # its pruner says so
    return spec.prune


def _kind(family: Family) -> str:
    return family.kind.partition(".")[0]


def _width(architecture: Architecture) -> int:
    """Channels of an expert of the dense model."""
    return architecture.reading(EXPERT)[0].shape[1]


def _check_width(family: Family, stay: int, kept: int, width: int, entry_of: Mapping[str, str]) -> None:
    """Refuse to keep `stay` units of a family where `kept` of `width` stay of each expert: InvalidSpec."""
    kind = _kind(family)
    if not 1 <= stay <= family.units:
        raise InvalidSpec(
            f"{stay} channels of {_WHOSE[kind]} are to stay, and there are {family.units}",
            f"keep {family.units} or fewer",
            field="/prune/shared_channels" if kind == SHARED else "/prune/channels",
        )
    if entry_of.get(kind) == entry_of[EXPERT] and stay * width != family.units * kept:
        raise InvalidSpec(
            f"{stay} of {family.units} channels of {_WHOSE[kind]} are to stay, and `{entry_of[EXPERT]}` says their "
            f"width and the experts', of which {kept} of {width} are to stay",
            "leave it out",
            field="/prune/shared_channels",
        )


def _stay(spec: CompressionSpec, family: Family, width: int) -> int:
    """The units of a family that stay, where experts have `width` channels."""
    params = _params(spec)
    kept = params.kept(width)
    if _kind(family) == EXPERT:
        return kept
    if _kind(family) == SHARED:
        return params.kept_shared(family.units, kept, width)
    return family.units * kept // width


def _kept(spec: CompressionSpec, architecture: Architecture, units: Units) -> dict[tuple[int, str], list[int]]:
    """(block, kind) -> units that stay, ascending."""
    width = _width(architecture)
    return {
        (family.block, family.kind): best_units(units.of(family), _stay(spec, family, width))
        for family in units.families
    }
