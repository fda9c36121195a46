"""Blocks: decoder blocks are dropped whole; the others keep their shapes and move up. Import-light."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from workers.engine.architectures.coupled import block_families
from workers.engine.architectures.kept_blocks import bound_to_numbers
from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import CountedPruneParams
from workers.engine.contracts.protocols import P_contra
from workers.engine.contracts.removes import Removes
from workers.engine.contracts.training import Target
from workers.engine.errors import InvalidSpec, UnsupportedModel
from workers.engine.registry import pruner
from workers.engine.removals.base import Edit, Prospect, Removal, Scores
from workers.engine.removals.outcome import Outcome

if TYPE_CHECKING:
    from workers.engine.architectures.architecture import Architecture, Family
    from workers.engine.contracts.facts import Units
    from workers.engine.contracts.params import MethodParams
    from workers.engine.events import Events
    from workers.engine.files.safetensors_bytes import TensorFacts
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.report import Report
    from workers.engine.sources.resolve import ModelSource
    from workers.engine.spec import CompressionSpec
    from workers.engine.store.clock import Clock

DECODER_BLOCKS = Removes("blocks", units=("layer",), plurals=("layers",))


class BlockPruneParams(CountedPruneParams):
    """Base of the parameters of pruners that drop decoder blocks."""

    def dropped(self, blocks: int) -> int:
        """Number of blocks to drop."""
        raise NotImplementedError


P = TypeVar("P", bound=BlockPruneParams)


class BlockPruner(Protocol[P_contra]):
    """`(scores, params) -> kept`: indices of the decoder blocks that stay, ascending, from a score for each."""

    def __call__(self, scores: Sequence[float], params: P_contra, /) -> list[int]: ...


def block_pruner(params: type[P], *, paper: str) -> Callable[[BlockPruner[P]], BlockPruner[P]]:
    """Register a pruner that drops whole decoder blocks."""
    return pruner(params, removes=DECODER_BLOCKS, paper=paper)


class Blocks(Removal):
    removes = DECODER_BLOCKS
    smaller = "fewer layers"

    def check(self, spec: CompressionSpec, source: ModelSource, architecture: Architecture) -> None:
        if (why := bound_to_numbers(source.config)) is not None:
            raise UnsupportedModel(
                f"{architecture.model_type}: {why}",
                "remove channels with `structured`, or weights",
                field="/prune",
            )

    def outcome(
        self,
        spec: CompressionSpec,
        source: ModelSource,
        architecture: Architecture,
        sparsity: Mapping[str, float] | None,
    ) -> Outcome | None:
        if _params(spec).undecided:
            check_left(spec, architecture, architecture.blocks)
            return None
        left = architecture.blocks - _params(spec).dropped(architecture.blocks)
        check_left(spec, architecture, left)
        return Outcome(architecture.layout, range(left))

    def counts(self, spec: CompressionSpec, source: ModelSource, architecture: Architecture) -> Sequence[int]:
        """How many go."""
        return range(architecture.blocks - _least(spec) + 1)

    def at_largest(
        self, spec: CompressionSpec, source: ModelSource, architecture: Architecture, size: Callable[[Outcome], int]
    ) -> Callable[[Outcome], int]:
        """With the protected blocks, and of the others those that are largest."""
        first, last = spec.score.protected if spec.score else (0, 0)
        protected = {*range(first), *range(architecture.blocks - last, architecture.blocks)}
        tensors: dict[int, set[tuple[str, tuple[int, ...], str]]] = {
            block: set() for block in range(architecture.blocks)
        }
        for name, facts in source.tensors.items():
            if (found := source.layout.split(name)) is not None:
                tensors[found[0]].add((found[1], tuple(facts.shape), facts.dtype))
        alike = {block: frozenset(found) for block, found in tensors.items()}
        one_of = {kind: block for block, kind in alike.items()}
        sizes = {kind: size(Outcome(architecture.layout, [block])) for kind, block in one_of.items()}
        order = sorted(alike, key=lambda block: (block not in protected, -sizes[alike[block]]))
        return lambda outcome: size(Outcome(outcome.layout, sorted(order[: len(outcome.blocks)])))

    def warnings(self, spec: CompressionSpec, prospect: Prospect) -> list[str]:
        if prospect.outcome is None:
            return ["how many blocks go follows from times that the job measures: another run may differ"]
        return super().warnings(spec, prospect)

    def families(
        self,
        spec: CompressionSpec,
        architecture: Architecture,
        config: Mapping[str, Any],
        tensors: Mapping[str, TensorFacts],
    ) -> Sequence[Family]:
        return block_families(architecture)

    def protect(self, params: MethodParams, scores: Scores) -> None:
        first, last = params.protected
        for block in (*range(first), *range(len(scores) - last, len(scores))):
            scores[block]["layer"] = [math.inf]

    def target(
        self,
        spec: CompressionSpec,
        source: ModelSource,
        architecture: Architecture,
        sparsity: Mapping[str, float] | None,
    ) -> Target:
        outcome = needed(self.outcome(spec, source, architecture, sparsity), "the number of blocks that stay")
        gone = architecture.blocks - len(outcome.blocks)
        return Target(
            outcome.share_gone(architecture, source.tensors), block_families(architecture), {(None, "layer"): gone}
        )

    def sparsity(
        self, spec: CompressionSpec, architecture: Architecture, units: Units | None
    ) -> Mapping[str, float] | None:
        """1 in the blocks that are dropped by their scores, else 0."""
        if units is None or _params(spec).undecided:
            return None
        scores = [block["layer"][0] for block in units.scores]
        kept = spec.editor.function(scores, spec.edit)
        return {layer.name: float(layer.block not in kept) for layer in architecture.layers}

    def decode_time(
        self, spec: CompressionSpec, model: LoadedModel, resident: bool, events: Events
    ) -> Callable[[Outcome], float]:
        from workers.engine.removals.decode_times import step_times

        limit, of = needed(spec.edit.size_limit, "/prune/at_most"), model.architecture.blocks
        times = step_times(model, limit, resident, [1], lambda _, blocks: Outcome(model.architecture.layout, blocks))
        times.log(events)
        return lambda outcome: times.seconds(1, len(outcome.blocks)) / times.seconds(1, of)

    def edit(
        self,
        spec: CompressionSpec,
        model: LoadedModel,
        units: Units | None,
        sparsity: Mapping[str, float],
        clock: Clock,
    ) -> Edit:
        architecture = model.architecture
        kept = [block for block in range(architecture.blocks) if not sparsity[architecture.block(block)[0].name]]
        return Edit(Outcome(architecture.layout, kept))

    def went(self, report: Report, share: str) -> str:
        dropped = len({layer.block for layer in report.layers if layer.shape == (0, 0)})
        return f"{dropped} of {len({layer.block for layer in report.layers})} decoder blocks were dropped"


REMOVAL = Blocks()


def check_left(spec: CompressionSpec, architecture: Architecture, left: int) -> None:
    """Refuse to leave fewer blocks than the score protects: InvalidSpec."""
    must_stay = _least(spec)
    if left < must_stay:
        raise InvalidSpec(
            f"{architecture.blocks - left} of {architecture.blocks} blocks are to go, and {must_stay} must stay",
            "drop fewer blocks, or lower protect_first and protect_last of the score",
            field="/prune",
        )


def _least(spec: CompressionSpec) -> int:
    """Blocks that must stay."""
    return max(1, sum(spec.score.protected) if spec.score else 0)


def _params(spec: CompressionSpec) -> BlockPruneParams:
    assert isinstance(spec.prune, BlockPruneParams)  # its pruner says so
    return spec.prune
