"""Hidden dimensions: cut out of the whole model, which gets narrower throughout. Import-light.

Every tensor is cut on its way from file to file; no text is read. K of D dimensions are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from workers.engine.architectures.built import value
from workers.engine.architectures.coupled import hidden_families
from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import CountedPruneParams
from workers.engine.contracts.protocols import P_contra
from workers.engine.contracts.removes import Removes
from workers.engine.contracts.training import Target
from workers.engine.errors import UnsupportedModel
from workers.engine.registry import pruner
from workers.engine.removals.base import Edit, Mask, Prospect, Removal
from workers.engine.removals.outcome import Outcome, config_after
from workers.engine.removals.widths import multiples

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.architectures.architecture import Architecture, Family
    from workers.engine.contracts.facts import Units
    from workers.engine.events import Events
    from workers.engine.files.safetensors_bytes import TensorFacts
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.report import Report
    from workers.engine.sources.resolve import ModelSource
    from workers.engine.spec import CompressionSpec
    from workers.engine.store.clock import Clock

HIDDEN = Removes("hidden", units=("hidden",), plurals=("hidden dimensions",), sums_weights=True)
_SIGNIFICAND_BITS = {"BF16": 8, "bfloat16": 8, "F16": 11, "float16": 11}
"""Significand bits of types whose rounding of gains is worth a warning."""


class HiddenPruneParams(CountedPruneParams):
    """Base of the parameters of pruners that remove hidden dimensions."""

    @property
    def multiple(self) -> int:
        """Where a size is to be fitted into, a multiple of this stays."""
        raise NotImplementedError

    def kept(self, hidden_size: int) -> int:
        """Number of hidden dimensions that stay. Raises InvalidSpec if there is no valid number."""
        raise NotImplementedError

    def share_removed(self, hidden_size: int) -> float:
        """The fraction removed, of the dimensions and of every linear layer's parameters."""
        return 1 - self.kept(hidden_size) / hidden_size


P = TypeVar("P", bound=HiddenPruneParams)


class HiddenPruner(Protocol[P_contra]):
    """`(scores, params) -> kept`: the hidden dimensions that stay, ascending, from a score for each."""

    def __call__(self, scores: Sequence[float], params: P_contra, /) -> list[int]: ...


def hidden_pruner(params: type[P], *, paper: str) -> Callable[[HiddenPruner[P]], HiddenPruner[P]]:
    """Register a pruner of hidden dimensions."""
    return pruner(params, removes=HIDDEN, paper=paper)


@dataclass(frozen=True)
class NarrowModel(Outcome):
    """Structure of a result with fewer hidden dimensions."""

    kept: int
    of: int

    cut: ClassVar[bool] = True

    def narrow(self, shapes: dict[str, list[int]]) -> None:
        for name, shape in shapes.items():
            if (axis := self.layout.hidden_axis(name)) is not None:
                shape[axis] = self.kept

    def entries(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """K of D dimensions have D / K times the mean square of D dimensions with zeros in the others; the epsilon is
        multiplied by D / K too, which makes the raised gains exact."""
        return {
            "hidden_size": self.kept,
            "rms_norm_eps": value(config, "rms_norm_eps") * self.of / self.kept,
        }


@dataclass(frozen=True)
class CutDimensions(Edit):
    """Cuts hidden dimensions out of every tensor."""

    outcome: NarrowModel
    kept: Sequence[int]
    """Ascending."""
    rounded_once: bool
    """Whether tensors are packaged in another type than the source's: then raised gains are rounded to that alone."""

    def outside(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {name: self._cut(name, tensor) for name, tensor in tensors.items()}

    def finish_block(self, block: int, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {name: self._cut(name, tensor) for name, tensor in tensors.items()}

    def _cut(self, name: str, tensor: Tensor) -> Tensor:
        """K of D dimensions have sqrt(D / K) times the root mean square of D with zeros in the others: the gains of
        norms are multiplied by that, and rounded once, to the type that ships."""
        import torch

        axis = self.outcome.layout.hidden_axis(name)
        if axis is None:
            return tensor
        left = tensor.index_select(axis, torch.tensor(self.kept, device=tensor.device))
        if not self.outcome.layout.is_hidden_norm(name):
            return left
        raised = left.float() * math.sqrt(self.outcome.of / self.outcome.kept)
        return raised if self.rounded_once else raised.to(left.dtype)


class Hidden(Removal):
    removes = HIDDEN
    draws_widths = False  # heads and MLPs are as wide as they were

    def check(self, spec: CompressionSpec, source: ModelSource, architecture: Architecture) -> None:
        """Where a size is to be fitted into, every number of dimensions that may stay can be said in a config."""
        hidden_families(architecture, source.config, source.tensors)  # refuses families it is not known of
        if not _params(spec).undecided:
            return
        least, of = self.counts(spec, source, architecture)[-1], architecture.hidden_size
        try:
            config_after(source.config, NarrowModel(architecture.layout, range(architecture.blocks), least, of))
        except UnsupportedModel as error:
            raise UnsupportedModel(
                error.message, "give a `multiple_of` that the number of heads divides", field="/prune/multiple_of"
            ) from error

    def outcome(
        self,
        spec: CompressionSpec,
        source: ModelSource,
        architecture: Architecture,
        sparsity: Mapping[str, float] | None,
    ) -> Outcome | None:
        if _params(spec).undecided:
            return None
        size = architecture.hidden_size
        return NarrowModel(architecture.layout, range(architecture.blocks), _params(spec).kept(size), size)

    def counts(self, spec: CompressionSpec, source: ModelSource, architecture: Architecture) -> Sequence[int]:
        """How many stay."""
        return multiples(architecture.hidden_size, _params(spec).multiple)

    def warnings(self, spec: CompressionSpec, prospect: Prospect) -> list[str]:
        if prospect.outcome is None:
            return ["how narrow the model becomes follows from times that the job measures: another run may differ"]
        assert isinstance(prospect.outcome, NarrowModel)  # made here
        return super().warnings(spec, prospect) + gain_warnings(spec, prospect.source, prospect.outcome)

    def of_whole(self, spec: CompressionSpec, prospect: Prospect, share: float) -> str | None:
        return None  # embeddings lose as much

    def families(
        self,
        spec: CompressionSpec,
        architecture: Architecture,
        config: Mapping[str, Any],
        tensors: Mapping[str, TensorFacts],
    ) -> Sequence[Family]:
        return hidden_families(architecture, config, tensors)

    def target(
        self,
        spec: CompressionSpec,
        source: ModelSource,
        architecture: Architecture,
        sparsity: Mapping[str, float] | None,
    ) -> Target:
        gone = architecture.hidden_size - _params(spec).kept(architecture.hidden_size)
        found = hidden_families(architecture, source.config, source.tensors)
        return Target(_params(spec).share_removed(architecture.hidden_size), found, {(None, "hidden"): gone})

    def sparsity(
        self, spec: CompressionSpec, architecture: Architecture, units: Units | None
    ) -> Mapping[str, float] | None:
        if _params(spec).undecided:
            return None
        gone = _params(spec).share_removed(architecture.hidden_size)
        return dict.fromkeys((layer.name for layer in architecture.layers), gone)

    def decode_time(
        self, spec: CompressionSpec, model: LoadedModel, resident: bool, events: Events
    ) -> Callable[[Outcome], float]:
        from workers.engine.removals.decode_times import levels, step_times

        layout, of = model.architecture.layout, model.architecture.hidden_size
        times = step_times(
            model,
            needed(spec.edit.size_limit, "/prune/at_most"),
            resident,
            levels(self.counts(spec, model.source, model.architecture)),
            lambda size, blocks: NarrowModel(layout, blocks, size, of),
        )
        times.log(events)
        dense_s = times.seconds(of, model.architecture.blocks)
        return lambda outcome: times.seconds(_kept(outcome), len(outcome.blocks)) / dense_s

    def edit(
        self,
        spec: CompressionSpec,
        model: LoadedModel,
        units: Units | None,
        sparsity: Mapping[str, float],
        clock: Clock,
    ) -> Edit:
        kept, of = kept_dimensions(spec, units), model.architecture.hidden_size
        outcome = NarrowModel(model.architecture.layout, range(model.architecture.blocks), len(kept), of)
        return CutDimensions(outcome, kept, spec.package.dtype != "source")

    def mask(self, spec: CompressionSpec, model: LoadedModel, units: Units | None, outcome: Outcome) -> Mask:
        return Mask(dimensions=kept_dimensions(spec, units))

    def went(self, report: Report, share: str) -> str:
        return (
            f"{share} of the hidden dimensions were cut off, {report.parameters:,} parameters became "
            f"{report.parameters_after or 0:,}"
        )


REMOVAL = Hidden()


def kept_dimensions(spec: CompressionSpec, units: Units | None) -> list[int]:
    """The hidden dimensions that stay."""
    scores = needed(units, "the units' scores").scores
    kept: list[int] = spec.editor.function(dimension_scores(scores), spec.edit)
    return kept


def dimension_scores(scores: Sequence[Mapping[str, Sequence[float]]]) -> list[float]:
    """The score of every hidden dimension: the sum over these blocks."""
    return [math.fsum(values) for values in zip(*(block["hidden"] for block in scores), strict=True)]


def _kept(outcome: Outcome) -> int:
    assert isinstance(outcome, NarrowModel)  # made here
    return outcome.kept


def _params(spec: CompressionSpec) -> HiddenPruneParams:
    assert isinstance(spec.prune, HiddenPruneParams)  # its pruner says so
    return spec.prune


def gain_warnings(spec: CompressionSpec, source: ModelSource, outcome: NarrowModel) -> list[str]:
    """Warnings of the rounding of norms' gains, which are multiplied by sqrt(D / K)."""
    kept, of = outcome.kept, outcome.of
    stored: set[str] = {spec.package.dtype}
    if spec.package.dtype == "source":
        stored = {facts.dtype for name, facts in source.tensors.items() if source.layout.is_hidden_norm(name)}
    digits = [bits for dtype, bits in _SIGNIFICAND_BITS.items() if dtype in stored]
    if not digits or math.log2(of / kept) % 2 == 0:  # raised by a power of two, they have the digits they had
        return []
    return [
        f"the gains of the norms go up by {math.sqrt(of / kept):.4f} and are rounded to a type of {min(digits)} bits, "
        f"by up to {2.0 ** -min(digits):.2%} each: `package.dtype` float32 keeps them exact"
    ]
