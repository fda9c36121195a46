"""The interface of a kind of unit that can be removed, and how it is found. Import-light.

Each kind is a file in this folder with a `Removes` (facts for the rules of a spec), a `Removal` (below) named
`REMOVAL`, and a decorator for its pruners. Planning, stages, checks and reports call the object and never test which
kind it is. O = outputs, I = inputs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, ClassVar

from workers.engine.removals.outcome import Outcome
from workers.engine.removals.runtimes import stock_checkpoint
from workers.engine.removals.spread import checked

if TYPE_CHECKING:
    from typing import Any

    from torch import Tensor

    from workers.engine.architectures.architecture import Architecture, Family, LinearFacts
    from workers.engine.contracts.facts import AllocationFacts, LinearStats, Units
    from workers.engine.contracts.params import MethodParams
    from workers.engine.contracts.removes import Removes
    from workers.engine.contracts.training import Target
    from workers.engine.events import Events
    from workers.engine.files.safetensors_bytes import TensorFacts
    from workers.engine.model.calibration import Calibration
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.report import Growth, Report, Runtime
    from workers.engine.sources.resolve import ModelSource
    from workers.engine.spec import CompressionSpec
    from workers.engine.store.checkpoint import Checkpoint
    from workers.engine.store.clock import Clock
    from workers.engine.store.run import Run

Scores = list[dict[str, list[float]]]
"""Block -> kind of unit -> importance of each."""


@dataclass(frozen=True)
class Prospect:
    """A job as far as it is known before it begins."""

    spec: CompressionSpec
    """With the number of units that stay in place of a size to fit into, where one says it for the whole model."""
    source: ModelSource
    architecture: Architecture
    sparsity: Mapping[str, float] | None
    """Layer name -> sparsity; None where the job has to measure something first."""
    outcome: Outcome | None
    """Structure of the result; None where widths follow from what the job measures. Which blocks will be
    dropped is not known; the last ones are taken, as number and sizes are the same."""


@dataclass(frozen=True)
class Edit:
    """The changes to a model's tensors, part by part, in the order of the forward pass."""

    outcome: Outcome
    """Structure of the result. Blocks that it lacks are not read."""

    def outside(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The tensors outside of blocks, as they ship."""
        return tensors

    def prepare(self, run: Run) -> None:
        """Work on the dense model as a whole that comes before its blocks are edited, where no text is read. The first
        rank does it, and keeps what it finds in the resume points. Raises NumericalFailure."""

    def new_block(self, index: int, run: Run) -> Mapping[str, Tensor]:
        """After `prepare`, the tensors of a block that the dense model does not have, by its number in the result.
        Their names are those of the dense block that it is made like."""
        raise NotImplementedError

    def looks_at(self, layers: Sequence[LinearFacts]) -> bool:
        """Whether `prune_stream` takes statistics of the stream that these layers read."""
        return True

    def prune_stream(
        self, layers: Sequence[LinearFacts], dense: Mapping[str, Tensor], stats: LinearStats
    ) -> dict[str, Tensor]:
        """Weight name -> new weight, of the layers of a block that read one stream; of the dense shapes, as the
        next layers are calibrated on their outputs. `dense`: the block's tensors. Raises NumericalFailure."""
        return {layer.weight: dense[layer.weight] for layer in layers}

    def finish_block(self, block: int, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The tensors of a block as they ship, once its streams are pruned."""
        return tensors


@dataclass(frozen=True)
class Mask:
    """The parts, beside blocks, without which the dense model computes the same as the result."""

    written: Mapping[str, Sequence[int] | None] = field(default_factory=dict)
    """Weight that the edit wrote -> the inputs that stay of it; None where all do."""
    inputs: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Weight that the edit only cut -> the inputs that stay of it."""
    dimensions: Sequence[int] | None = None
    """Hidden dimensions that stay; None where all do."""
    experts: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """Block -> experts that tokens are sent to; others than these blocks send them to all."""


class Removal:
    """A kind of unit: its requirements of a model, its effect on it, and its wording. Without state."""

    removes: ClassVar[Removes]
    smaller: ClassVar[str] = "narrower layers"
    """Difference of a result with equal blocks from the dense model, as in `fewer layers`."""
    result: ClassVar[str] = "pruned"
    """Participle that names the result, as in `pruned / dense`."""
    done: ClassVar[str] = "removed"
    """The same of what its methods do to the units."""
    act: ClassVar[str] = "pruning"
    """Noun of the same."""
    tags: ClassVar[tuple[str, ...]] = ("pruning", "sparsity")
    """Of the result's model card."""
    gentler: ClassVar[str] = "lower the sparsity"
    """Remedy where the result computes no finite numbers."""
    draws_widths: ClassVar[bool] = True
    """Whether the page of a report draws how wide heads and MLPs are."""
    draws_sparsity: ClassVar[bool] = True
    """Whether it draws the sparsity of layers, where it draws no widths."""

    # Before the job

    def check(self, spec: CompressionSpec, source: ModelSource, architecture: Architecture) -> None:
        """Refuse a model that nothing can be removed from as the spec says: UnsupportedModel, InvalidSpec."""

    def outcome(
        self,
        spec: CompressionSpec,
        source: ModelSource,
        architecture: Architecture,
        sparsity: Mapping[str, float] | None,
    ) -> Outcome | None:
        """The structure that follows from a sparsity of every layer; None where that has to be known first and is not.

        Raises InvalidSpec and UnsupportedModel where it cannot be had.
        """
        return Outcome(architecture.layout, range(architecture.blocks))

    def counts(self, spec: CompressionSpec, source: ModelSource, architecture: Architecture) -> Sequence[int]:
        """The numbers that the spec may have in place of a size to fit into, from that of the largest result to that of
        the smallest; empty where an allocator spreads what goes."""
        return ()

    def at_largest(
        self, spec: CompressionSpec, source: ModelSource, architecture: Architecture, size: Callable[[Outcome], int]
    ) -> Callable[[Outcome], int]:
        """A function from the structure of a result to the largest `size` that it may have, where the structure does
        not say which units go and they differ."""
        return size

    def zeros(self, spec: CompressionSpec, prospect: Prospect) -> int | None:
        """Zeros the result's layers will hold where the dense ones hold none; None while that is not known."""
        return 0

    def width_multiple(self, spec: CompressionSpec) -> int:
        """A divisor of the widths of MLPs, where no more is known of them."""
        return 1

    def warnings(self, spec: CompressionSpec, prospect: Prospect) -> list[str]:
        """Effects that a user might not expect: whole units make the removed share larger or smaller."""
        target, outcome = spec.edit.target, prospect.outcome
        if not target or outcome is None:
            return []
        removed = outcome.share_gone(prospect.architecture, prospect.source.tensors)
        if abs(removed - target) <= 0.005:
            return []
        return [f"{removed:.1%} of the blocks' parameters will be removed, not {target:.1%}: whole units go"]

    def of_whole(self, spec: CompressionSpec, prospect: Prospect, share: float) -> str | None:
        """The warning where blocks hold less than four fifths of the model, `share`; None for no warning."""
        return f"only {share:.0%} of the parameters are in the blocks; the rest stays"

    def runtimes(self, spec: CompressionSpec, outcome: Outcome | None) -> list[Runtime]:
        """Runtimes that can load the result, and whether it is faster there. `outcome`: None if not known yet."""
        return stock_checkpoint(self.smaller)

    def looks_at(self, spec: CompressionSpec, layer: LinearFacts) -> bool:
        """Whether statistics of what a layer reads are counted, for predictions of memory."""
        return True

    def largest(
        self, spec: CompressionSpec, source: ModelSource, architecture: Architecture
    ) -> tuple[ModelSource, Architecture]:
        """The larger of the dense model and the result, without its weights, for predictions of memory and time."""
        return source, architecture

    # Scores

    def families(
        self,
        spec: CompressionSpec,
        architecture: Architecture,
        config: Mapping[str, Any],
        tensors: Mapping[str, TensorFacts],
    ) -> Sequence[Family]:
        """The units of every block that slices of tensors belong to; empty where units are whole blocks."""
        return ()

    def going(self, spec: CompressionSpec, family: Family) -> int:
        """How many units of a family go, where that does not depend on their scores."""
        raise NotImplementedError

    def protect(self, params: MethodParams, scores: Scores) -> None:
        """Set the scores of units that must stay to infinity."""

    def decided(
        self, spec: CompressionSpec, model: LoadedModel, units: Units, text: Calibration | None, run: Run
    ) -> Units:
        """The scored units, with what has to be measured once their scores say which go."""
        return units

    # Training

    def target(
        self,
        spec: CompressionSpec,
        source: ModelSource,
        architecture: Architecture,
        sparsity: Mapping[str, float] | None,
    ) -> Target:
        """The target of a training that decides on these units. `sparsity`: of every layer; None where
        the training spreads it."""
        raise NotImplementedError

    # Allocation

    def sparsity(
        self, spec: CompressionSpec, architecture: Architecture, units: Units | None
    ) -> Mapping[str, float] | None:
        """Layer name -> fraction to remove, where no allocator spreads it; None where it depends on `units`, which is
        None."""
        raise NotImplementedError

    def spread(self, spec: CompressionSpec, facts: AllocationFacts, target: float) -> Mapping[str, float]:
        """Layer name -> fraction to remove, in [0, 1), by the spec's allocator. The mean weighted by parameters is
        `target`, to 1e-4. Raises NumericalFailure where the allocator breaks that, InvalidSpec where it cannot be."""
        return checked(spec.allocate, facts, target)

    def allocated(self, spec: CompressionSpec, units: Units | None) -> Units | None:
        """The scored units that the allocator decides on."""
        return units

    def decode_time(
        self, spec: CompressionSpec, model: LoadedModel, resident: bool, events: Events
    ) -> Callable[[Outcome], float]:
        """A function that predicts the time of a decode step of an outcome, as a fraction of the dense model's. Called
        where the spec bounds it. `resident`: two models fit in memory."""
        raise NotImplementedError

    # The job

    def edit(
        self,
        spec: CompressionSpec,
        model: LoadedModel,
        units: Units | None,
        sparsity: Mapping[str, float],
        clock: Clock,
    ) -> Edit:
        """The changes to the model. Raises InvalidSpec where a block cannot lose as much."""
        raise NotImplementedError

    def mask(self, spec: CompressionSpec, model: LoadedModel, units: Units | None, outcome: Outcome) -> Mask:
        """The mask that the result is compared with, derived from the decision alone and not from the cut tensors."""
        return Mask()

    def check_layer(
        self, spec: CompressionSpec, layer: LinearFacts, sparsity: float, weight_OI: Tensor, zeros: int
    ) -> None:
        """Raise PromiseBroken where a layer of the result does not hold what the spec promises of it."""

    # The report

    def went(self, report: Report, share: str) -> str:
        """The units removed, as the first clause of a sentence. `share`: the report's sparsity, as `50 %`."""
        raise NotImplementedError

    def extent(self, report: Report) -> tuple[str, float]:
        """(what is counted, as a share of the dense model, the share): the first figure of a report."""
        return "weights removed", report.sparsity

    def growth(self, outcome: Outcome, checkpoint: Checkpoint) -> Growth | None:
        """The new blocks of a result; None of kinds that add none."""
        return None

    def importance_lost(
        self, spec: CompressionSpec, architecture: Architecture, units: Units | None, outcome: Outcome, target: float
    ) -> tuple[float, float] | None:
        """Share of all importance that the removed units had, and that they would have had with blocks of different
        widths; None where it is not defined."""
        return None


@cache
def removal(removes: Removes) -> Removal:
    """The removal of a kind of unit, from its file."""
    found: Removal = importlib.import_module(f"{__package__}.{removes.name}").REMOVAL
    return found


def removal_of(spec: CompressionSpec) -> Removal:
    """The removal that a spec asks for."""
    return removal(spec.removes)
