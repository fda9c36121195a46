"""The method registry: one paper, one file, found by walking `workers/engine/methods/<stage>/`.

A method file declares a frozen pydantic parameter class whose `method` field is its tag, and decorates one
function. The spec's unions, the OpenAPI schema, `/v1/capabilities`, the docs and the contract tests all read
this registry; no other list of methods exists. Files of packages that the operator allows are imported likewise
(`method_packages.py`). Import-light: torch is never imported here, nor at module level in any method file.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from workers.engine.contracts.params import STAGES, Group, MethodParams, Scores, Stage, Stat, Unit
from workers.engine.contracts.protocols import (
    Allocator,
    ComparingEvaluator,
    Evaluator,
    Measure,
    PairedEvaluator,
    Refiner,
    Scorer,
    Trainer,
    Tuner,
    UnitMeasure,
    UnitScorer,
)
from workers.engine.method_packages import VARIABLE, offered, unknown_packages

if TYPE_CHECKING:
    from workers.engine.contracts.removes import Removes


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
    """Scorers: units that they score. Trainers: units that they decide on. Pruners: units that they remove; growers
    remove none."""
    removes: Removes | None = None
    """Pruners and growers: the kind of unit, that goes or is added."""
    even: bool = False
    """Allocators: whether every layer gets the same sparsity, whatever the model."""
    default: bool = False
    """Allocators: whether a spec that names none takes it. One is."""
    unstructured_only: bool = False
    """Allocators: whether their guarantee does not hold where sparsities are rounded to an N:M pattern."""
    patterns: tuple[str, ...] = ()
    scores: Scores = "required"
    """Pruners, growers and trainers: whether a score is required, optional or not used."""
    updates_weights: bool = False
    """Pruners: whether the weights that stay are changed to make up for those that go."""
    whole_model: bool = True
    """Evaluators: whether the model must be in memory as a whole."""
    paired: bool = False
    """Evaluators: whether their values drift with the machine's load, so that both models are measured in turn."""
    compares: bool = False
    """Evaluators: whether they look at both models at once."""
    measure: Callable[..., Any] | None = None
    """Measures a dense block before the sparsity is spread. All unit scorers have one, and some allocators."""
    by_place: bool = False
    """Allocators: whether blocks that are alike get unequal sparsities, by their place in the model."""
    origin: str = ""
    """Package and version that the method comes from; empty for espalier's own."""

    @property
    def defaults(self) -> MethodParams:
        """Its parameters where nobody chose any. Some methods of `prune` and `tune` require one."""
        return self.params()  # type: ignore[call-arg]


class RegistryError(RuntimeError):
    """A method file that cannot be used: import error, duplicate tag, or a tag that is not the file's name."""


WEIGHT: tuple[Unit, ...] = ("weight",)
_OURS = "workers.engine.methods"
_methods: dict[tuple[Stage, str], Method] = {}
_of_packages: dict[str, Method] = {}
"""Module -> the method that it registers."""
P = TypeVar("P", bound=MethodParams)
F = TypeVar("F", bound=Callable[..., Any])


def _register(stage: Stage, params: type[MethodParams], function: Callable[..., Any], **declared: Any) -> None:
    name = get_args(params.model_fields["method"].annotation)[0]
    module = function.__module__
    ours = module.startswith(f"{_OURS}.")
    if ours and module != f"{_OURS}.{stage}.{name}":
        raise RegistryError(f"{module}: a {stage} method tagged {name!r} belongs in methods/{stage}/{name}.py")
    if module in _of_packages or (ours and (stage, name) in _methods):
        raise RegistryError(f"{module}: {stage} method {name!r} is registered twice")
    doc = (importlib.import_module(module).__doc__ or "").strip()
    if not doc:
        raise RegistryError(f"{module}: the module docstring is the method's summary and is missing")
    method = Method(stage, name, params, function, doc.splitlines()[0], **declared)
    if ours:
        _methods[stage, name] = method
    else:
        _of_packages[module] = method


def scorer(params: type[P], *, paper: str, group: Group, needs: Stat = Stat.NONE) -> Callable[[Scorer[P]], Scorer[P]]:
    """Register an importance score for the weights of one linear layer. A unit's score is the sum over its weights."""

    def register(function: Scorer[P]) -> Scorer[P]:
        _register("score", params, function, paper=paper, group=group, needs=needs, units=WEIGHT)
        return function

    return register


def unit_scorer(
    params: type[P], *, paper: str, units: tuple[Unit, ...], measure: UnitMeasure[P], needs: Stat = Stat.NONE
) -> Callable[[UnitScorer[P]], UnitScorer[P]]:
    """Register an importance score for units that are removed as a whole, computed from what `measure` returns."""

    def register(function: UnitScorer[P]) -> UnitScorer[P]:
        _register("score", params, function, paper=paper, units=units, needs=needs, measure=measure)
        return function

    return register


def allocator(
    params: type[P],
    *,
    paper: str,
    needs: Stat = Stat.NONE,
    measure: Measure[P] | None = None,
    even: bool = False,
    default: bool = False,
    unstructured_only: bool = False,
    by_place: bool = False,
) -> Callable[[Allocator[P]], Allocator[P]]:
    """Register a rule that spreads the global sparsity over layers, from what `measure` returns per block. `by_place`:
    it gives blocks that are alike unequal sparsities, as rules by depth do."""

    def register(function: Allocator[P]) -> Allocator[P]:
        _register(
            "allocate",
            params,
            function,
            paper=paper,
            needs=needs,
            measure=measure,
            even=even,
            default=default,
            unstructured_only=unstructured_only,
            by_place=by_place,
        )
        return function

    return register


def pruner(
    params: type[MethodParams],
    *,
    removes: Removes,
    paper: str,
    patterns: tuple[str, ...] = (),
    scores: Scores = "required",
    group: Group = "row",
    needs: Stat = Stat.NONE,
    updates_weights: bool = False,
) -> Callable[[F], F]:
    """Register a pruner of one kind of unit. Method files use the decorator of their kind's file in `removals/`, which
    types the function.

    `patterns`: "N:M" stands for any N kept of M. `group`: where the pruner counts zeros if it has no score; with one,
    the score's group counts. `needs`: statistics of the inputs of the layers that it is given.
    """

    def register(function: F) -> F:
        _register(
            "prune",
            params,
            function,
            removes=removes,
            units=removes.units,
            paper=paper,
            patterns=patterns,
            scores=scores,
            group=group,
            needs=needs,
            updates_weights=updates_weights,
        )
        return function

    return register


def grower(params: type[MethodParams], *, adds: Removes, paper: str) -> Callable[[F], F]:
    """Register a method that makes the units of a kind that is added. Method files use the decorator of the kind's file
    in `removals/`, which types the function."""

    def register(function: F) -> F:
        _register("grow", params, function, removes=adds, paper=paper, scores="unused")
        return function

    return register


def refiner(params: type[P], *, paper: str, needs: Stat = Stat.NONE) -> Callable[[Refiner[P]], Refiner[P]]:
    """Register a method that moves the zeros that a pruner has set."""

    def register(function: Refiner[P]) -> Refiner[P]:
        _register("refine", params, function, paper=paper, needs=needs)
        return function

    return register


def trainer(params: type[P], *, paper: str, units: tuple[Unit, ...]) -> Callable[[Trainer[P]], Trainer[P]]:
    """Register a method that prunes a model while it trains. `params` extends `TrainMethodParams`. `units`: what it can
    decide on."""

    def register(function: Trainer[P]) -> Trainer[P]:
        _register("train", params, function, paper=paper, units=units, scores="unused")
        return function

    return register


def tuner(params: type[P], *, paper: str) -> Callable[[Tuner[P]], Tuner[P]]:
    """Register a method that trains a pruned model. `params` extends `TuneMethodParams`."""

    def register(function: Tuner[P]) -> Tuner[P]:
        _register("tune", params, function, paper=paper)
        return function

    return register


def evaluator(params: type[P], *, paper: str = "", whole_model: bool = True) -> Callable[[Evaluator[P]], Evaluator[P]]:
    """Register a measurement made on the dense and on the pruned model.

    Without `whole_model` it reads the model's files, or asks the context for the loss of windows.
    """

    def register(function: Evaluator[P]) -> Evaluator[P]:
        _register("evaluate", params, function, paper=paper, whole_model=whole_model)
        return function

    return register


def paired_evaluator(params: type[P], *, paper: str = "") -> Callable[[PairedEvaluator[P]], PairedEvaluator[P]]:
    """Register a measurement that drifts with the machine's load, as times do: both models are measured in turn."""

    def register(function: PairedEvaluator[P]) -> PairedEvaluator[P]:
        _register("evaluate", params, function, paper=paper, paired=True)
        return function

    return register


def comparing_evaluator(
    params: type[P], *, paper: str = ""
) -> Callable[[ComparingEvaluator[P]], ComparingEvaluator[P]]:
    """Register a measurement of what the pruned model makes of the dense one's predictions."""

    def register(function: ComparingEvaluator[P]) -> ComparingEvaluator[P]:
        _register("evaluate", params, function, paper=paper, compares=True)
        return function

    return register


@cache
def discover() -> dict[tuple[Stage, str], Method]:
    """Import every method file and return what they registered.

    Raises RegistryError where a file cannot be used, so that no method disappears silently.
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
    if unknown := unknown_packages():
        raise RegistryError(f"{VARIABLE} names {', '.join(unknown)}: not installed here, or without methods")
    for one in offered():
        if not one.allowed:
            continue
        method = replace(method_in(one.module), origin=one.origin)
        if (method.stage, method.name) != (one.stage, one.name):
            raise RegistryError(
                f"{one.origin}: the entry point {one.stage}.{one.name} leads to {one.module}, which registers "
                f"{method.stage}.{method.name}"
            )
        if taken := _methods.get((method.stage, method.name)):
            raise RegistryError(
                f"{one.origin}: {taken.origin or 'espalier'} has a {one.stage} method {one.name!r} already"
            )
        _methods[method.stage, method.name] = method
    return {key: _of_summed_units(method) for key, method in _methods.items()}


def method_in(module: str) -> Method:
    """The method of another package's module, allowed or not: for the tests of its authors.

    Raises RegistryError where the module registers none, or imports torch before its function is called.
    """
    light = "torch" not in sys.modules
    try:
        importlib.import_module(module)
    except RegistryError:
        raise
    except Exception as error:
        raise RegistryError(
            f"{module}: cannot be imported: {error!r}. Import torch and what needs it inside functions"
        ) from error
    if light and "torch" in sys.modules:
        raise RegistryError(f"{module}: imports torch, which the API does without: import it inside functions")
    if module not in _of_packages:
        raise RegistryError(f"{module}: registers no method")
    return _of_packages[module]


def _of_summed_units(method: Method) -> Method:
    """The method, with the kinds of unit added whose score is the sum over their weights."""
    if method.stage != "score" or method.units != WEIGHT:
        return method
    kinds = {m.removes.name: m.removes for m in _methods.values() if m.removes is not None and m.removes.sums_weights}
    return replace(method, units=WEIGHT + tuple(unit for name in sorted(kinds) for unit in kinds[name].units))


def methods(stage: Stage) -> list[Method]:
    """The methods of one stage, by name."""
    return sorted((m for m in discover().values() if m.stage == stage), key=lambda m: m.name)


def method_of(stage: Stage, params: MethodParams) -> Method:
    """The method that `params` (a validated member of the stage's union) belongs to."""
    return discover()[stage, params.method]


def defaults(stage: Stage, name: str) -> MethodParams:
    """The parameters of a method that nobody chose any of."""
    return discover()[stage, name].defaults


def compared(params: MethodParams) -> list[MethodParams]:
    """Those of the allocators that these parameters of an allocator compare."""
    return [defaults("allocate", name) for name in params.compares]


def untagged(path: Sequence[str | int]) -> list[str | int]:
    """A location in a spec as pydantic gives it, without the names of union members, which are not in the JSON."""
    found = list(path)
    if found and found[0] in STAGES:
        tag = 2 if len(found) > 1 and isinstance(found[1], int) else 1
        names = [method.name for method in methods(found[0])]
        if len(names) > 1 and len(found) > tag and found[tag] in names:
            del found[tag]
    return found
