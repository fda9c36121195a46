"""Experts: whole ones of every mixture go, dropped or merged into others, with their rows of the router. Import-light.

E = experts of a block, D = hidden size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from workers.engine.architectures.architecture import Family
from workers.engine.architectures.mixtures import (
    chosen,
    expert_of,
    groups,
    mixtures,
    of_each_expert,
    renumbered,
    with_experts,
)
from workers.engine.architectures.skipping import skipping_class
from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import CountedPruneParams, Stat
from workers.engine.contracts.protocols import P_contra
from workers.engine.contracts.removes import Removes
from workers.engine.errors import InvalidSpec, UnsupportedModel
from workers.engine.registry import pruner
from workers.engine.removals.base import Edit, Mask, Removal
from workers.engine.removals.outcome import Outcome
from workers.engine.removals.runtimes import skipping_code

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.architectures.architecture import Architecture
    from workers.engine.contracts.facts import Merge, Units
    from workers.engine.files.safetensors_bytes import TensorFacts
    from workers.engine.model.calibration import Calibration
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.report import Report, Runtime
    from workers.engine.sources.resolve import ModelSource
    from workers.engine.spec import CompressionSpec
    from workers.engine.store.clock import Clock
    from workers.engine.store.run import Run

EXPERTS = Removes(
    "experts",
    units=("expert",),
    plurals=("experts",),
    not_spread="one number of experts for all blocks, as the configs of most families do",
)
_BEST_OF_GROUP = 2
"""Experts of a group by which routers of DeepSeek's kind judge it."""
_NUMBER = re.compile(r"\.(\d+)\.[^.]+$")
"""In the name of an expert's layer, its number."""


class ExpertPruneParams(CountedPruneParams):
    """Base of the parameters of pruners that drop whole experts."""

    def kept(self, experts: int) -> int:
        """How many experts of a block of so many stay."""
        raise NotImplementedError


P = TypeVar("P", bound=ExpertPruneParams)


class ExpertPruner(Protocol[P_contra]):
    """`(scores, kept, params) -> experts`: the `kept` experts that stay, ascending, from a score for each."""

    def __call__(self, scores: Sequence[float], kept: int, params: P_contra, /) -> list[int]: ...


def expert_pruner(params: type[P], *, paper: str) -> Callable[[ExpertPruner[P]], ExpertPruner[P]]:
    """Register a pruner that drops whole experts."""
    return pruner(params, removes=EXPERTS, paper=paper)


@dataclass(frozen=True)
class FewerExperts(Outcome):
    """Structure of a result with fewer experts a block."""

    kept: Mapping[int, Sequence[int]]
    """Block with a mixture -> experts that stay, ascending."""
    axes: Mapping[str, int]
    """Tensor -> its axis of experts, of those beside the experts' matrices."""

    field: ClassVar[str] = "/prune"

    @property
    def experts(self) -> int:
        """How many stay of each block."""
        return len(next(iter(self.kept.values())))

    def narrow(self, shapes: dict[str, list[int]]) -> None:
        for name in [*shapes]:
            if self.renamed(name) is None:
                del shapes[name]
            elif name in self.axes:
                shapes[name][self.axes[name]] = self.experts

    def entries(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return with_experts(config, self.experts)

    def renamed(self, name: str) -> str | None:
        expert = expert_of(self.layout, name)
        if expert is None:
            return name
        kept = list(self.kept[(self.layout.split(name) or (0, ""))[0]])
        return renumbered(self.layout, name, kept.index(expert)) if expert in kept else None


@dataclass(frozen=True)
class DropExperts(Edit):
    """Leaves out whole experts, which may be merged into others before."""

    outcome: FewerExperts
    architecture: Architecture
    merges: Sequence[Merge]
    dtype: str
    """That tensors ship in, or `source`."""

    def finish_block(self, block: int, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        import torch

        if merges := [merge for merge in self.merges if merge.block == block]:
            from workers.engine.removals.merging import merged

            new = merged(self.outcome.layout, self.architecture.block(block), tensors, merges)
            if self.dtype == "source":  # others are rounded once, to what ships
                new = {name: tensor.to(tensors[name].dtype) for name, tensor in new.items()}
            tensors = {**tensors, **new}
        found = {}
        for name, tensor in tensors.items():
            if (renamed := self.outcome.renamed(name)) is None:
                continue
            found[renamed] = tensor
            if (axis := self.outcome.axes.get(name)) is not None:
                kept_E = torch.tensor(list(self.outcome.kept[block]), device=tensor.device)
                found[renamed] = tensor.index_select(axis, kept_E)
        return found


class Experts(Removal):
    removes = EXPERTS
    smaller = "fewer experts"
    draws_widths = False  # heads and MLPs are as wide as they were

    def check(self, spec: CompressionSpec, source: ModelSource, architecture: Architecture) -> None:
        """Every block keeps as many as a token is sent to; of groups, as many of each."""
        found, params = mixtures(architecture), _params(spec)
        if not found:
            raise UnsupportedModel(
                f"{architecture.model_type}: its blocks have no experts",
                "remove channels with `structured`, blocks with `depth`, or weights",
                field="/prune",
            )
        if len({mixture.experts for mixture in found}) > 1:
            raise UnsupportedModel(
                f"{architecture.model_type}: its blocks have different numbers of experts",
                "remove blocks with `depth`, or weights",
                field="/prune",
            )
        experts, sent, (count, best) = found[0].experts, chosen(source.config), groups(source.config)
        if params.skips:
            skipping_class(source.config["model_type"])
            if sent < 2:
                raise InvalidSpec(
                    "a token is sent to one expert, which cannot be skipped", "leave it out", field="/prune/skip"
                )
        if params.at_most is not None and (params.at_most.decode_time or params.at_most.macs):
            raise InvalidSpec(
                f"a token is sent to {sent} experts, however many there are: to drop some saves no MACs, and no time "
                "of a step that could be foreseen",
                "bound `parameters` or `bytes`, or make experts narrower with `expert_channels`",
                field=f"/prune/at_most/{'decode_time' if params.at_most.decode_time else 'macs'}",
            )
        if count > 1 and Stat.EXPERT_SETS in spec.unit_needs:
            raise InvalidSpec(
                f"{architecture.model_type}: its router chooses among {count} groups of experts, of which as many must "
                f"stay: `{needed(spec.score, '/score').method}` compares sets of experts of any",
                "use the score `reap`",
                field="/score",
            )
        if params.undecided:
            return
        kept = params.kept(experts)
        if kept > experts:
            raise InvalidSpec(
                f"{kept} experts are to stay, a block has {experts}", "keep fewer", field="/prune/experts"
            )
        if kept < sent:
            raise InvalidSpec(
                f"{kept} of {experts} experts are to stay, and a token is sent to {sent}",
                f"keep {sent} or more",
                field="/prune",
            )
        if kept % count:
            raise InvalidSpec(
                f"{kept} experts are not as many of each of the {count} groups that the router chooses among",
                f"keep a multiple of {count}",
                field="/prune",
            )
        if kept < (least := _least(source.config)):
            raise InvalidSpec(
                f"of {kept} experts in {count} groups, those of the {best} chosen for a token are too few for the "
                f"{sent} that it is sent to",
                f"keep {least} or more",
                field="/prune",
            )

    def counts(self, spec: CompressionSpec, source: ModelSource, architecture: Architecture) -> Sequence[int]:
        """How many stay."""
        return range(mixtures(architecture)[0].experts, _least(source.config) - 1, -groups(source.config)[0])

    def outcome(
        self,
        spec: CompressionSpec,
        source: ModelSource,
        architecture: Architecture,
        sparsity: Mapping[str, float] | None,
    ) -> Outcome | None:
        """Which experts stay is not known; the first are taken, as number and sizes are the same."""
        if _params(spec).undecided:
            return None
        kept = {mixture.block: range(_params(spec).kept(mixture.experts)) for mixture in mixtures(architecture)}
        return _outcome(architecture, kept, source.tensors)

    def runtimes(self, spec: CompressionSpec, outcome: Outcome | None) -> list[Runtime]:
        return skipping_code() if _params(spec).skips else super().runtimes(spec, outcome)

    def families(
        self,
        spec: CompressionSpec,
        architecture: Architecture,
        config: Mapping[str, Any],
        tensors: Mapping[str, TensorFacts],
    ) -> Sequence[Family]:
        found = []
        for mixture in mixtures(architecture):
            size = sum(
                layer.parameters
                for layer in architecture.block(mixture.block)
                if expert_of(architecture.layout, layer.name) == 0
            )
            found.append(Family(mixture.block, "expert", mixture.experts, (), size, 0, groups(config)[0]))
        return found

    def going(self, spec: CompressionSpec, family: Family) -> int:
        return family.units - _params(spec).kept(family.units)

    def decided(
        self, spec: CompressionSpec, model: LoadedModel, units: Units, text: Calibration | None, run: Run
    ) -> Units:
        """With the experts that those that go are merged into, where the spec asks for that."""
        if not _params(spec).merges:
            return units
        from workers.engine.removals.merging import planned_merges

        merges = planned_merges(model, kept_experts(spec, units), needed(text, "/calibrate"), run)
        return replace(units, merges=merges)

    def sparsity(
        self, spec: CompressionSpec, architecture: Architecture, units: Units | None
    ) -> Mapping[str, float] | None:
        """1 in the experts that are dropped, else 0."""
        if units is None:
            return None
        outcome = _outcome(architecture, kept_experts(spec, units), {})
        return {layer.name: float(outcome.renamed(layer.name) is None) for layer in architecture.layers}

    def edit(
        self,
        spec: CompressionSpec,
        model: LoadedModel,
        units: Units | None,
        sparsity: Mapping[str, float],
        clock: Clock,
    ) -> Edit:
        units = needed(units, "the units' scores")
        outcome = _outcome(model.architecture, kept_experts(spec, units), model.source.tensors)
        return DropExperts(outcome, model.architecture, units.merges, spec.package.dtype)

    def mask(self, spec: CompressionSpec, model: LoadedModel, units: Units | None, outcome: Outcome) -> Mask:
        from workers.engine.removals.merging import written_by

        units = needed(units, "the units' scores")
        written = written_by(model.architecture.layout, model.source.tensors, units.merges)
        return Mask(written=dict.fromkeys(written), experts=kept_experts(spec, units))

    def went(self, report: Report, share: str) -> str:
        of_block: dict[int, set[str]] = {}
        for layer in report.layers:
            if (found := _NUMBER.search(layer.name)) is not None and layer.reads != "hidden":
                of_block.setdefault(layer.block, set()).add(found[1])
        gone = sum(1 for layer in report.layers if layer.shape == (0, 0) and layer.reads != "hidden")
        experts, blocks = len(next(iter(of_block.values()))), len(of_block)
        how = "merged into the others" if report.merges else "dropped"
        return (
            f"{gone // blocks} of {experts} experts of each of {blocks} blocks were {how}, {report.parameters:,} "
            f"parameters became {report.parameters_after or 0:,}"
        )


REMOVAL = Experts()


def _least(config: Mapping[str, Any]) -> int:
    """Experts of a block that must stay, so that as many can be chosen for a token as before, of each group as many."""
    sent, (count, best) = chosen(config), groups(config)
    return sent if count == 1 else count * max(_BEST_OF_GROUP, -(-sent // best))


def kept_experts(spec: CompressionSpec, units: Units) -> dict[int, list[int]]:
    """Block with a mixture -> experts that stay, ascending: of each group as many."""
    prune, params = spec.editor.function, _params(spec)
    found: dict[int, list[int]] = {}
    for family in units.families:
        scores, kept = units.of(family), params.kept(family.units)
        count = family.groups
        size = family.units // count
        found[family.block] = [
            group * size + expert
            for group in range(count)
            for expert in prune(scores[group * size : (group + 1) * size], kept // count, params)
        ]
    return found


def _outcome(
    architecture: Architecture, kept: Mapping[int, Sequence[int]], tensors: Mapping[str, TensorFacts]
) -> FewerExperts:
    axes = of_each_expert(architecture, tensors)
    return FewerExperts(architecture.layout, range(architecture.blocks), kept, axes)


def _params(spec: CompressionSpec) -> ExpertPruneParams:
    assert isinstance(spec.prune, ExpertPruneParams)  # its pruner says so
    return spec.prune
