"""Weights: single ones of the linear layers become zeros; shapes stay. Import-light. O = outputs, I = inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import Group, Scores, Stat, WeightPruneParams
from workers.engine.contracts.protocols import P_contra
from workers.engine.contracts.removes import Removes
from workers.engine.contracts.training import Target
from workers.engine.errors import InvalidSpec, PromiseBroken
from workers.engine.registry import pruner
from workers.engine.removals.base import Edit, Mask, Prospect, Removal
from workers.engine.removals.outcome import Outcome
from workers.engine.removals.runtimes import dense_checkpoint
from workers.engine.removals.spread import checked, whole_groups

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.architectures.architecture import Architecture, LinearFacts
    from workers.engine.contracts.facts import AllocationFacts, LayerTask, LinearStats, Units
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.report import Report, Runtime
    from workers.engine.sources.resolve import ModelSource
    from workers.engine.spec import CompressionSpec
    from workers.engine.store.clock import Clock

WEIGHTS = Removes(
    "weights",
    units=("weight",),
    plurals=("weights",),
    scored_first=False,
    spread=True,
    tried=True,
    leaves_zeros=True,
)
P = TypeVar("P", bound=WeightPruneParams)
_BUG = "this is a bug in the engine; the numbers in this message are what to report"


class WeightPruner(Protocol[P_contra]):
    """`(layers, stats, group, params) -> weights`: for layers of one input stream, in their order, new tensors of the
    same shapes, with exactly `params.removed(shape, sparsity, group)` zeros each where dense weights hold none.

    Compute in float32 and return that; the stage rounds to the type that ships. `group` is the scorer's, `row` if none.
    """

    def __call__(
        self, layers: Sequence[LayerTask], stats: LinearStats, group: Group, params: P_contra, /
    ) -> list[Tensor]: ...


def weight_pruner(
    params: type[P],
    *,
    paper: str,
    patterns: tuple[str, ...],
    scores: Scores,
    group: Group = "row",
    needs: Stat = Stat.NONE,
    updates_weights: bool = False,
) -> Callable[[WeightPruner[P]], WeightPruner[P]]:
    """Register a pruner of single weights; see `pruner`."""
    return pruner(
        params,
        removes=WEIGHTS,
        paper=paper,
        patterns=patterns,
        scores=scores,
        group=group,
        needs=needs,
        updates_weights=updates_weights,
    )


class Weights(Removal):
    removes = WEIGHTS

    def check(self, spec: CompressionSpec, source: ModelSource, architecture: Architecture) -> None:
        for layer in architecture.layers:
            if misfit := _params(spec).misfit(layer.shape):
                raise InvalidSpec(
                    f"{layer.name}: {misfit}", "choose a pattern that fits every width", field="/prune/pattern"
                )

    def zeros(self, spec: CompressionSpec, prospect: Prospect) -> int | None:
        """Where the allocation is not known yet it is the target's share: allocations keep the mean."""
        params, layers, sparsity = _params(spec), prospect.architecture.layers, prospect.sparsity
        if params.target is None:
            return None
        if sparsity is None:
            return round(params.target * prospect.architecture.prunable_parameters)
        return sum(params.removed(layer.shape, sparsity[layer.name], spec.group) for layer in layers)

    def warnings(self, spec: CompressionSpec, prospect: Prospect) -> list[str]:
        found = []
        target, realised = spec.edit.target, self._realised(spec, prospect)
        if target is not None and realised is not None and target - realised > 1e-4:
            found.append(
                f"{realised:.4f} of the weights will be removed, not {target:g}: each row drops a whole number"
            )
        if target is None:
            found.append(
                "the sparsity is found by trial prunings with scores taken once; the result is measured, and where it "
                "breaks the ratio the job prunes again, up to five times"
            )
        if prospect.sparsity is None:
            found.append("how much each layer loses is measured by the job, not known in advance")
        return found

    def of_whole(self, spec: CompressionSpec, prospect: Prospect, share: float) -> str | None:
        realised = self._realised(spec, prospect)
        return f"only {share:.0%} of the parameters can be pruned, the linear layers of the blocks: " + (
            f"the whole model ends up {realised * share:.0%} zeros" if realised is not None else "the rest stays"
        )

    def runtimes(self, spec: CompressionSpec, outcome: Outcome | None) -> list[Runtime]:
        return dense_checkpoint()

    def spread(self, spec: CompressionSpec, facts: AllocationFacts, target: float) -> Mapping[str, float]:
        """Multiples of 1 / M for N:M patterns, whose mean is the target to half a unit's share."""
        sparsity, kept_of = checked(spec.allocate, facts, target), spec.edit.kept_of
        if kept_of is None:
            return sparsity
        return whole_groups(facts.layers, sparsity, kept_of, spec.allocate.least_sparsity)

    def target(
        self,
        spec: CompressionSpec,
        source: ModelSource,
        architecture: Architecture,
        sparsity: Mapping[str, float] | None,
    ) -> Target:
        params, sparsity = _params(spec), needed(sparsity, "the sparsity of the layers")
        counts = {
            layer.name: params.removed(layer.shape, sparsity[layer.name], spec.group) for layer in architecture.layers
        }
        return Target(
            sum(counts.values()) / architecture.prunable_parameters,
            layers=architecture.layers,
            sparsity=sparsity,
            counts=counts,
            kept_of=spec.edit.kept_of,
        )

    def edit(
        self,
        spec: CompressionSpec,
        model: LoadedModel,
        units: Units | None,
        sparsity: Mapping[str, float],
        clock: Clock,
    ) -> Edit:
        from workers.engine.removals.set_to_zero import SetToZero

        return SetToZero(Outcome(model.architecture.layout, range(model.architecture.blocks)), spec, sparsity, clock)

    def mask(self, spec: CompressionSpec, model: LoadedModel, units: Units | None, outcome: Outcome) -> Mask:
        return Mask({layer.weight: None for layer in model.architecture.layers})

    def check_layer(
        self, spec: CompressionSpec, layer: LinearFacts, sparsity: float, weight_OI: Tensor, zeros: int
    ) -> None:
        """At least as many zeros as its sparsity takes, and at most N non-zeros in a group of an N:M pattern."""
        promised = _params(spec).removed(layer.shape, sparsity, spec.group)
        if zeros < promised:
            raise PromiseBroken(
                f"{layer.name}: {promised:,} weights were to go, and the result has {zeros:,} zeros",
                _BUG,
                field="/prune",
            )
        if spec.edit.kept_of is not None:
            m = spec.edit.kept_of[1]
            kept = m - round(m * sparsity)
            most = int((weight_OI != 0).unflatten(1, (-1, m)).sum(dim=2).max())
            if most > kept:
                raise PromiseBroken(
                    f"{layer.name}: {kept} of every {m} weights were to stay, and the result has {most} in one group",
                    _BUG,
                    field="/prune/pattern",
                )

    def went(self, report: Report, share: str) -> str:
        return (
            f"{share} of the weights of {len(report.layers)} linear layers ({report.zeros:,} of "
            f"{report.prunable_parameters:,}) were set to zero"
        )

    def _realised(self, spec: CompressionSpec, prospect: Prospect) -> float | None:
        zeros = self.zeros(spec, prospect)
        return None if zeros is None else zeros / prospect.architecture.prunable_parameters


REMOVAL = Weights()


def _params(spec: CompressionSpec) -> WeightPruneParams:
    assert isinstance(spec.prune, WeightPruneParams)  # its pruner says so
    return spec.prune
