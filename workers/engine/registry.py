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
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, get_args

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from workers.engine.stages.evaluate import EvaluationContext
    from workers.engine.stats import LinearFacts, LinearStats, Measurement

Stage = Literal["score", "allocate", "prune", "evaluate"]
Group = Literal["row", "matrix"]
"""Where scores may be compared with one another: within a row of the weight, or over the whole matrix."""
STAGES: tuple[Stage, ...] = get_args(Stage)


class Stat(Flag):
    """What a method must know about a linear layer's inputs; collected once per input stream."""

    NONE = 0
    INPUT_SQ_MEAN = auto()


class MethodParams(BaseModel):
    """Base of every method's parameters. Subclasses add `method: Literal["<file name>"]` and bounded fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: str


class PruneMethodParams(MethodParams):
    """Base of the pruners' parameters: what every stage before them needs to know of the target."""

    @property
    def target(self) -> float:
        """Global fraction of the prunable weights to remove, in [0, 1)."""
        raise NotImplementedError

    def removed(self, shape: tuple[int, int], sparsity: float, group: Group) -> int:
        """How many weights of an (O, I) layer go at `sparsity`: exact, and known without the weights."""
        raise NotImplementedError

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Why an (O, I) layer cannot be pruned like this, or None if it can."""
        raise NotImplementedError


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
    units: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()


P_contra = TypeVar("P_contra", bound=MethodParams, contravariant=True)


class Scorer(Protocol[P_contra]):
    """`(weight_OI, stats, params) -> score_OI`: importance >= 0, finite, higher is kept; never writes its inputs."""

    def __call__(self, weight_OI: Tensor, stats: LinearStats, params: P_contra, /) -> Tensor: ...


class Allocator(Protocol[P_contra]):
    """`(layers, sparsity, params) -> {layer name: sparsity}`; the mean weighted by parameters is `sparsity`."""

    def __call__(self, layers: Sequence[LinearFacts], sparsity: float, params: P_contra, /) -> Mapping[str, float]: ...


class Pruner(Protocol[P_contra]):
    """`(weight_OI, score_OI, sparsity, group, params) -> weight_OI`: a new tensor of the same shape and dtype."""

    def __call__(
        self, weight_OI: Tensor, score_OI: Tensor, sparsity: float, group: Group, params: P_contra, /
    ) -> Tensor: ...


class Evaluator(Protocol[P_contra]):
    """`(context, params) -> measurements` of the one model in `context`; called for the dense and the pruned one."""

    def __call__(self, context: EvaluationContext, params: P_contra, /) -> list[Measurement]: ...


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


def scorer(
    params: type[P], *, paper: str, group: Group, needs: Stat = Stat.NONE, units: tuple[str, ...] = ("weight",)
) -> Callable[[Scorer[P]], Scorer[P]]:
    """Register an importance score for the weights of one linear layer."""

    def register(function: Scorer[P]) -> Scorer[P]:
        _register("score", params, function, paper=paper, group=group, needs=needs, units=units)
        return function

    return register


def allocator(params: type[P], *, paper: str) -> Callable[[Allocator[P]], Allocator[P]]:
    """Register a rule that spreads the global sparsity over layers."""

    def register(function: Allocator[P]) -> Allocator[P]:
        _register("allocate", params, function, paper=paper)
        return function

    return register


def pruner(params: type[P], *, paper: str, patterns: tuple[str, ...]) -> Callable[[Pruner[P]], Pruner[P]]:
    """Register what removes weights. `patterns` uses "N:M" for any N kept of M."""

    def register(function: Pruner[P]) -> Pruner[P]:
        _register("prune", params, function, paper=paper, patterns=patterns)
        return function

    return register


def evaluator(params: type[P], *, paper: str = "") -> Callable[[Evaluator[P]], Evaluator[P]]:
    """Register a measurement made on the dense and on the pruned model."""

    def register(function: Evaluator[P]) -> Evaluator[P]:
        _register("evaluate", params, function, paper=paper)
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
