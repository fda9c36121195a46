"""The method registry: one paper, one file, found by walking `workers/engine/methods/<stage>/`.

A method file declares a frozen pydantic parameter class whose `method` field is its tag, and decorates one
function. The spec's unions, the OpenAPI schema, `/v1/capabilities`, the docs and the contract tests all read
this registry; no other list of methods exists. Import-light: torch is never imported here, nor at module level
in any method file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from enum import Flag, auto
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from workers.engine.refs import DataRef, SpecModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from workers.engine.stages.evaluate import EvaluationContext
    from workers.engine.stats import (
        AllocationFacts,
        DenseBlock,
        DenseUnits,
        LayerTask,
        LinearStats,
        Measurement,
        Probe,
    )
    from workers.engine.tuning.trainable import Trainable

Stage = Literal["score", "allocate", "prune", "refine", "tune", "evaluate"]
Unit = Literal["weight", "head", "channel", "hidden", "layer"]
"""What a score is about and a pruner removes. Heads come with their key/value group, a hidden dimension is an entry of
the vector that all blocks read and add to, a layer is a decoder block."""
Group = Literal["row", "matrix"]
"""Where scores may be compared with one another: within a row of the weight, or over the whole matrix."""
Scores = Literal["required", "optional", "unused"]
STAGES: tuple[Stage, ...] = get_args(Stage)


class Stat(Flag):
    """What a method must know beside the weights; collected once, per input stream where it is about inputs.

    The first four are fields of `LinearStats` and need calibration text.
    """

    NONE = 0
    INPUT_SQ_MEAN = auto()
    INPUT_MOMENTS = auto()
    """Mean and variance of each input."""
    GRAM = auto()
    DENSE_INPUTS = auto()
    """The Gram matrices against the inputs of a dense block; differs from GRAM where inputs are refreshed."""
    CURVATURE = auto()
    """Allocators only: the loss's Hessian over each layer's weights. Holds the whole model in memory."""
    LOSS = auto()
    """Allocators only: the loss of the model pruned as the allocator asks."""
    GRADIENT = auto()
    """Unit scorers only: gradients of the loss, block by block."""
    SQUARED_GRADIENT = auto()
    """Unit scorers only: means over windows of squared gradients (the empirical Fisher information's diagonal)."""
    CHANGE = auto()
    """Unit scorers only: how far a block turns its input."""
    REMOVAL = auto()
    """Unit scorers only: the loss without the block."""
    UNIT_SCORES = auto()
    """Allocators only: the scores of the units, where units are removed."""


class MethodParams(BaseModel):
    """Base of every method's parameters. Subclasses add `method: Literal["<file name>"]` and bounded fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    method: str

    unmeasured: ClassVar[frozenset[str]] = frozenset()
    """Allocators: parameters that `measure` does not look at. Changing them measures nothing again."""

    @property
    def measures(self) -> tuple[str, ...]:
        """Evaluators: the names of what they will measure. One that ends in `/` stands for all names that begin so."""
        return (f"{self.method}/",)

    @property
    def waives(self) -> Stat:
        """What of its method's `needs` these parameters do without."""
        return Stat.NONE

    @property
    def most_of_units(self) -> float:
        """Allocators: the largest fraction of a block's heads, and of its channels, that may go."""
        return 1.0

    @property
    def least_sparsity(self) -> float:
        """Allocators: no layer loses a smaller fraction, unless the target itself is smaller."""
        return 0.0


class UnitScoreParams(MethodParams):
    """Base of the parameters of scores of whole units."""

    @property
    def splits(self) -> int:
        """Into how many parts the windows are divided whose gradients are kept apart."""
        return 1

    @property
    def protected(self) -> tuple[int, int]:
        """How many decoder blocks at the front and at the back are never dropped, where blocks are scored."""
        return 0, 0


class LossMethodParams(DataRef, MethodParams):
    """Base of evaluators that measure the loss on a text: what a target that bounds it needs to know."""

    sequence_length: int
    samples: int | None
    per_document: int | None


class PruneMethodParams(MethodParams):
    """Base of the pruners' parameters: what the stages around them need to know of the target."""

    @property
    def target(self) -> float | None:
        """Global fraction of the prunable weights to remove, in [0, 1); None where it is still to be found."""
        raise NotImplementedError

    @property
    def kept_of(self) -> tuple[int, int] | None:
        """(N, M) where N of every M consecutive inputs are kept on average over the layers, else None."""
        return None


class WeightPruneParams(PruneMethodParams):
    """Base of pruners that set single weights to zero."""

    def removed(self, shape: tuple[int, int], sparsity: float, group: Group) -> int:
        """How many weights of an (O, I) layer go at `sparsity`: exact, and known without the weights."""
        raise NotImplementedError

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Why an (O, I) layer cannot be pruned like this, or None if it can."""
        raise NotImplementedError


class AtMost(SpecModel):
    """How large a result may be; all that is given must be kept."""

    parameters: int | None = Field(None, ge=1, description="Of the whole model, tied ones once.", examples=[5_000_000])
    bytes: int | None = Field(None, ge=1, description="Of its weights as stored.")
    macs: int | None = Field(
        None, ge=1, description="Multiply-accumulate operations of a forward pass, counted as evaluation `macs` does."
    )
    decode_time: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Time of a decode step as a fraction of the dense model's, foreseen by the worker before it cuts "
        "and measured on the result, which may take 1.05 times that: the result is not the same on another machine, "
        "and to the last channel not on the same.",
        examples=[0.6],
    )
    tokens: int = Field(
        64, ge=1, le=131_072, description="Tokens of the pass that `macs` bounds, and before the step of `decode_time`."
    )
    batch_size: int = Field(1, ge=1, le=256, description="Sequences that `decode_time` decodes together.")

    @model_validator(mode="after")
    def _a_limit(self) -> AtMost:
        if not self.limits:
            raise PydanticCustomError(
                "no_limit", "give at least one of `parameters`, `bytes`, `macs` and `decode_time`"
            )
        return self

    @property
    def limits(self) -> dict[str, float]:
        names = ("parameters", "bytes", "macs", "decode_time")
        return {name: limit for name in names if (limit := getattr(self, name)) is not None}


class UnitPruneParams(PruneMethodParams):
    """Base of pruners that remove heads and channels."""

    at_most: AtMost | None
    """What the result must fit into, where no target is given."""
    units: tuple[Unit, ...]
    """Which kinds go."""
    protect_first: int
    protect_last: int
    """Blocks at either end that lose nothing."""
    channel_multiple: int
    """Channels kept are a multiple of this."""


class LayerPruneParams(PruneMethodParams):
    """Base of pruners that drop decoder blocks."""

    def dropped(self, blocks: int) -> int:
        """How many of a model's blocks go."""
        raise NotImplementedError


class HiddenPruneParams(PruneMethodParams):
    """Base of pruners that remove hidden dimensions."""

    def kept(self, hidden_size: int) -> int:
        """How many of a model's hidden dimensions stay. Raises InvalidSpec if that cannot be."""
        raise NotImplementedError

    def share_removed(self, hidden_size: int) -> float:
        """The fraction that goes, which is that of every linear layer's parameters too."""
        return 1 - self.kept(hidden_size) / hidden_size


@dataclass(frozen=True)
class Method:
    """A registered method: its parameters, its function, and what it declares about itself."""

    stage: Stage
    name: str
    params: type[MethodParams]
    function: Callable[..., Any]
    summary: str
    paper: str
    needs: Stat = Stat.NONE
    group: Group = "row"
    units: tuple[Unit, ...] = ()
    """Scorers: what they score. Pruners: what they remove."""
    patterns: tuple[str, ...] = ()
    scores: Scores = "required"
    """Pruners: whether a score must be given, may be, or would not be looked at."""
    updates_weights: bool = False
    """Pruners: whether the weights that stay are changed to make up for those that go."""
    whole_model: bool = True
    """Evaluators: whether the model must be in memory as a whole."""
    paired: bool = False
    """Evaluators: whether what they measure drifts with the machine, so that both models are measured in turn."""
    measure: Callable[..., Any] | None = None
    """What is measured of every dense block before anything is decided: always by unit scorers, by some allocators."""


P_contra = TypeVar("P_contra", bound=MethodParams, contravariant=True)


class Scorer(Protocol[P_contra]):
    """`(weight_OI, stats, params) -> score_OI`: importance >= 0, finite, higher is kept; never writes its inputs."""

    def __call__(self, weight_OI: Tensor, stats: LinearStats, params: P_contra, /) -> Tensor: ...


class UnitMeasure(Protocol[P_contra]):
    """`(block, params) -> {name: numbers}` of one dense block, float32 or float64 [U] of a family or [] of the block;
    called once per job, and cached between jobs. Names are the method's own, `head` or `channel` first."""

    def __call__(self, block: DenseUnits, params: P_contra, /) -> Mapping[str, Tensor]: ...


class UnitScorer(Protocol[P_contra]):
    """`(measured, params) -> scores`: from what was measured of every block, unit kind -> importance float64 [U] of
    its units, per block. Higher is kept, +inf never goes."""

    def __call__(self, measured: Sequence[Mapping[str, Tensor]], params: P_contra, /) -> list[Mapping[str, Tensor]]: ...


class Allocator(Protocol[P_contra]):
    """`(facts, sparsity, params) -> {layer name: sparsity}`; the mean weighted by parameters is `sparsity`."""

    def __call__(self, facts: AllocationFacts, sparsity: float, params: P_contra, /) -> Mapping[str, float]: ...


class Measure(Protocol[P_contra]):
    """`(block, params) -> {layer name: metric}` of one dense block; called once per job, and cached between jobs."""

    def __call__(self, block: DenseBlock, params: P_contra, /) -> Mapping[str, float]: ...


class Pruner(Protocol[P_contra]):
    """`(layers, stats, group, params) -> weights`: for layers of one input stream, in their order, new tensors of the
    same shapes, with exactly `params.removed(shape, sparsity, group)` zeros each where dense weights hold none.

    Compute in float32 and return that; the stage rounds to the type that ships. `group` is the scorer's, `row` if none.
    """

    def __call__(
        self, layers: Sequence[LayerTask], stats: LinearStats, group: Group, params: P_contra, /
    ) -> list[Tensor]: ...


class UnitPruner(Protocol[P_contra]):
    """`(reader, kept_I, stats, params) -> weight_OI`: the weight of the layer that reads a family's units, zero in the
    inputs that are not in the boolean `kept_I`, where the others may make up for them. Float32, of unchanged shape:
    the stage cuts the zeros out."""

    def __call__(self, reader: LayerTask, kept_I: Tensor, stats: LinearStats, params: P_contra, /) -> Tensor: ...


class LayerPruner(Protocol[P_contra]):
    """`(scores, params) -> kept`: indices of the decoder blocks that stay, ascending, from a score for each."""

    def __call__(self, scores: Sequence[float], params: P_contra, /) -> list[int]: ...


class HiddenPruner(Protocol[P_contra]):
    """`(scores, params) -> kept`: the hidden dimensions that stay, ascending, from a score for each."""

    def __call__(self, scores: Sequence[float], params: P_contra, /) -> list[int]: ...


class Refiner(Protocol[P_contra]):
    """`(layer, pruned_OI, stats, params, kept_of) -> kept_OI`: boolean [O, I], which weights to keep instead of the
    non-zeros of `pruned_OI`: as many in every row, and in every group of M where `kept_of` is (N, M), not None."""

    def __call__(
        self,
        layer: LayerTask,
        pruned_OI: Tensor,
        stats: LinearStats,
        params: P_contra,
        kept_of: tuple[int, int] | None,
        /,
    ) -> Tensor: ...


class Tuner(Protocol[P_contra]):
    """`(model, params) -> trainable`: the whole pruned model, in memory, made ready to train.

    Chooses or adds float32 parameters and freezes the others. From then on the model's forward pass is that of the
    plain weights which `trainable.merged` gives. Zeros in linear layers of the blocks stay zeros, in both.
    """

    def __call__(self, model: nn.Module, params: P_contra, /) -> Trainable: ...


class Evaluator(Protocol[P_contra]):
    """`(context, params) -> measurements` of the one model in `context`; called for the dense and the pruned one."""

    def __call__(self, context: EvaluationContext, params: P_contra, /) -> list[Measurement]: ...


class PairedEvaluator(Protocol[P_contra]):
    """`(context, params) -> probes` of the one whole model in `context`, warmed up; called for each model once it is in
    memory, as often as it is loaded. The stage reads the probes of both in turn. Nothing it finds outlives the run."""

    def __call__(self, context: EvaluationContext, params: P_contra, /) -> list[Probe]: ...


class RegistryError(RuntimeError):
    """A method file that cannot be used: import error, duplicate tag, or a tag that is not the file's name."""


_methods: dict[tuple[Stage, str], Method] = {}
P = TypeVar("P", bound=MethodParams)


def _register(stage: Stage, params: type[MethodParams], function: Callable[..., Any], **declared: Any) -> None:
    name = get_args(params.model_fields["method"].annotation)[0]
    module = function.__module__
    if module != f"workers.engine.methods.{stage}.{name}":
        raise RegistryError(f"{module}: a {stage} method tagged {name!r} belongs in methods/{stage}/{name}.py")
    if (stage, name) in _methods:
        raise RegistryError(f"{module}: {stage} method {name!r} is registered twice")
    doc = (importlib.import_module(module).__doc__ or "").strip()
    if not doc:
        raise RegistryError(f"{module}: the module docstring is the method's summary and is missing")
    _methods[stage, name] = Method(stage, name, params, function, doc.splitlines()[0], **declared)


def scorer(params: type[P], *, paper: str, group: Group, needs: Stat = Stat.NONE) -> Callable[[Scorer[P]], Scorer[P]]:
    """Register an importance score for the weights of one linear layer. A unit's is the sum over its weights."""

    def register(function: Scorer[P]) -> Scorer[P]:
        units = ("weight", "head", "channel", "hidden")
        _register("score", params, function, paper=paper, group=group, needs=needs, units=units)
        return function

    return register


def unit_scorer(
    params: type[P], *, paper: str, units: tuple[Unit, ...], measure: UnitMeasure[P], needs: Stat = Stat.NONE
) -> Callable[[UnitScorer[P]], UnitScorer[P]]:
    """Register an importance score for units that are removed as a whole, from what `measure` finds in the blocks."""

    def register(function: UnitScorer[P]) -> UnitScorer[P]:
        _register("score", params, function, paper=paper, units=units, needs=needs, measure=measure)
        return function

    return register


def allocator(
    params: type[P], *, paper: str, needs: Stat = Stat.NONE, measure: Measure[P] | None = None
) -> Callable[[Allocator[P]], Allocator[P]]:
    """Register a rule that spreads the global sparsity over layers, on what `measure` finds in every dense block."""

    def register(function: Allocator[P]) -> Allocator[P]:
        _register("allocate", params, function, paper=paper, needs=needs, measure=measure)
        return function

    return register


def pruner(
    params: type[P],
    *,
    paper: str,
    patterns: tuple[str, ...],
    scores: Scores,
    group: Group = "row",
    needs: Stat = Stat.NONE,
    updates_weights: bool = False,
) -> Callable[[Pruner[P]], Pruner[P]]:
    """Register what removes single weights. `patterns` uses "N:M" for any N kept of M.

    `group` is where it counts zeros when it chooses them itself; with a score the score's group counts.
    """

    def register(function: Pruner[P]) -> Pruner[P]:
        _register(
            "prune",
            params,
            function,
            paper=paper,
            patterns=patterns,
            scores=scores,
            group=group,
            needs=needs,
            updates_weights=updates_weights,
            units=("weight",),
        )
        return function

    return register


def unit_pruner(params: type[P], *, paper: str, needs: Stat = Stat.NONE) -> Callable[[UnitPruner[P]], UnitPruner[P]]:
    """Register what removes heads and channels. `needs` is about the inputs of the layers that read them."""

    def register(function: UnitPruner[P]) -> UnitPruner[P]:
        _register("prune", params, function, paper=paper, units=("head", "channel"), needs=needs, updates_weights=True)
        return function

    return register


def layer_pruner(params: type[P], *, paper: str) -> Callable[[LayerPruner[P]], LayerPruner[P]]:
    """Register what drops whole decoder blocks."""

    def register(function: LayerPruner[P]) -> LayerPruner[P]:
        _register("prune", params, function, paper=paper, units=("layer",))
        return function

    return register


def hidden_pruner(params: type[P], *, paper: str) -> Callable[[HiddenPruner[P]], HiddenPruner[P]]:
    """Register what removes hidden dimensions."""

    def register(function: HiddenPruner[P]) -> HiddenPruner[P]:
        _register("prune", params, function, paper=paper, units=("hidden",))
        return function

    return register


def refiner(params: type[P], *, paper: str, needs: Stat = Stat.NONE) -> Callable[[Refiner[P]], Refiner[P]]:
    """Register what moves zeros to better places after a pruner has set them."""

    def register(function: Refiner[P]) -> Refiner[P]:
        _register("refine", params, function, paper=paper, needs=needs)
        return function

    return register


def tuner(params: type[P], *, paper: str) -> Callable[[Tuner[P]], Tuner[P]]:
    """Register what trains a pruned model for a while. `params` extends `TuneMethodParams`."""

    def register(function: Tuner[P]) -> Tuner[P]:
        _register("tune", params, function, paper=paper)
        return function

    return register


def evaluator(params: type[P], *, paper: str = "", whole_model: bool = True) -> Callable[[Evaluator[P]], Evaluator[P]]:
    """Register a measurement made on the dense and on the pruned model.

    One that does without the whole model reads its files, or asks the context for the loss of windows.
    """

    def register(function: Evaluator[P]) -> Evaluator[P]:
        _register("evaluate", params, function, paper=paper, whole_model=whole_model)
        return function

    return register


def paired_evaluator(params: type[P], *, paper: str = "") -> Callable[[PairedEvaluator[P]], PairedEvaluator[P]]:
    """Register a measurement that drifts with the machine, as times do: both models are measured in turn."""

    def register(function: PairedEvaluator[P]) -> PairedEvaluator[P]:
        _register("evaluate", params, function, paper=paper, paired=True)
        return function

    return register


@cache
def discover() -> dict[tuple[Stage, str], Method]:
    """Import every method file and return what they registered.

    Raises RegistryError rather than skipping: a method that silently disappears is worse than a service that
    does not start.
    """
    for stage in STAGES:
        package = importlib.import_module(f"workers.engine.methods.{stage}")
        for found in pkgutil.iter_modules(package.__path__):
            module = f"{package.__name__}.{found.name}"
            try:
                importlib.import_module(module)
            except RegistryError:
                raise
            except Exception as error:
                raise RegistryError(f"{module}: cannot be imported: {error!r}") from error
            if (stage, found.name) not in _methods:
                raise RegistryError(f"{module}: registers no {stage} method named {found.name!r}")
    return dict(_methods)


def methods(stage: Stage) -> list[Method]:
    """The methods of one stage, by name."""
    return sorted((m for m in discover().values() if m.stage == stage), key=lambda m: m.name)


def method_of(stage: Stage, params: MethodParams) -> Method:
    """The method that `params` (a validated member of the stage's union) belongs to."""
    return discover()[stage, params.method]


def untagged(path: Sequence[str | int]) -> list[str | int]:
    """A place in a spec as pydantic names it, without the names of the union members it tried: no part of the JSON."""
    found = list(path)
    if found and found[0] in STAGES:
        tag = 2 if len(found) > 1 and isinstance(found[1], int) else 1
        names = [method.name for method in methods(found[0])]
        if len(names) > 1 and len(found) > tag and found[tag] in names:
            del found[tag]
    return found
