"""Allocate: spread the global sparsity over the layers, and search for it where the spec gives a bound instead.

Statistics of the dense model and an allocator's measurements of its blocks are made once and cached by content, so that
jobs on the same model and text share them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from workers.engine.contracts.facts import Allocation, AllocationFacts, DenseBlock, LinearStats
from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import Stat
from workers.engine.contracts.texts import Wanted
from workers.engine.errors import InvalidSpec, NumericalFailure
from workers.engine.maths.selection import finite
from workers.engine.model.calibration import Calibration
from workers.engine.model.curvature import curvature
from workers.engine.model.dense_statistics import dense_statistics
from workers.engine.model.loaded import block_tensors
from workers.engine.model.memory import memory_budget
from workers.engine.model.provenance import environment
from workers.engine.model.reading import load_tokens
from workers.engine.model.trial_losses import Trials
from workers.engine.model.windows import measured_windows
from workers.engine.planning.fit_to_size import fitted, fitting_sparsity
from workers.engine.planning.predictions import TRIAL_TOKENS, whole_models
from workers.engine.registry import compared, method_of
from workers.engine.removals.base import removal_of

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.checks.tries import Tries
    from workers.engine.contracts.facts import Units
    from workers.engine.contracts.params import MethodParams
    from workers.engine.contracts.refs import DataRef
    from workers.engine.contracts.texts import Tokens
    from workers.engine.events import Events
    from workers.engine.model.dense_statistics import Statistics
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.registry import Method
    from workers.engine.removals.outcome import Outcome
    from workers.engine.sources.resolve import Sources
    from workers.engine.spec import CompressionSpec
    from workers.engine.store.run import Run

FITTED = "fitted"
"""Resume point of a try: how many units stay, and the decode time foreseen."""
RATIO_STEP = 1 / 256
"""Step of the search for a sparsity."""


def allocate(
    spec: CompressionSpec,
    model: LoadedModel,
    calibration: Calibration | None,
    sources: Sources,
    units: Units | None,
    tries: Tries,
    foreseen: float | None = None,
) -> Allocation:
    """The allocation of this try, kept in its resume points, so that a retry uses the same. Raises NumericalFailure.

    `foreseen`: what `fitted_to_time` foresaw.
    """
    run, resume = tries.shared, tries.present.checkpoint
    if saved := resume.load_json("allocation"):
        return Allocation(**saved)
    if not spec.removes.spread:
        sparsity = needed(removal_of(spec).sparsity(spec, model.architecture, units), "the sparsity of the units")
        found = Allocation(_mean(model, sparsity), sparsity, {}, foreseen)
        resume.save_json("allocation", vars(found))
        return found
    with run.clock.measure("calibrate"):
        stats = dense_statistics(model, calibration, run, needs=spec.allocate_needs)
    # Trials, curvature and what is measured of blocks are the first rank's work.
    found = model.ranks.first(lambda: _spread(spec, model, calibration, sources, units, stats, tries))
    resume.save_json("allocation", vars(found))
    return found


def _spread(
    spec: CompressionSpec,
    model: LoadedModel,
    calibration: Calibration | None,
    sources: Sources,
    units: Units | None,
    stats: Statistics,
    tries: Tries,
) -> Allocation:
    """The allocation that the spec's allocator, limit or bound leads to."""
    run, removal, limit = tries.shared, removal_of(spec), spec.edit.size_limit
    metrics = _metrics(spec.allocate, spec.seed, model, calibration, stats, run)
    layers, needs = model.architecture.layers, spec.allocate_needs
    others = {params: _metrics(params, spec.seed, model, calibration, stats, run) for params in compared(spec.allocate)}

    with ExitStack() as open_trials:

        def trials(text: Calibration) -> Trials:
            measured_on = calibration.key if calibration else ""
            return open_trials.enter_context(closing(Trials(spec, model, text, stats, measured_on, run)))

        facts = AllocationFacts(layers, metrics, units=removal.allocated(spec, units))
        if Stat.LOSS in needs:
            text = needed(calibration, "/calibrate")
            sample = Calibration(_first_tokens(text, TRIAL_TOKENS), text.label)
            loss = trials(sample).loss
            rules = {p.method: _rule(p, AllocationFacts(layers, of_p, loss)) for p, of_p in others.items()}
            facts = AllocationFacts(layers, metrics, loss, rules)
        target, foreseen = spec.edit.target, None
        if target is None and limit is not None:
            decode_time = _decode_time(spec, model, run.events) if limit.decode_time is not None else None
            with _of_this_try(tries):
                target, foreseen = fitting_sparsity(
                    spec, model.source, model.architecture, facts, decode_time, within=tries.bound
                )
        if target is not None:
            found = Allocation(target, removal.spread(spec, facts, target), metrics, foreseen)
        else:
            found = _within_ratio(spec, facts, trials(_ratio_text(spec, model, sources)), tries)
        if facts.loss is not None and facts.rules:  # known by now, so nothing is tried again
            losses = {name: facts.loss(rule(found.target)) for name, rule in facts.rules.items()}
            found = replace(found, trials=losses)
    return found


def fitted_to_time(spec: CompressionSpec, model: LoadedModel, tries: Tries) -> tuple[CompressionSpec, float | None]:
    """(the spec with the number of units that keeps its bound on the decode time, the time foreseen), where one number
    says how many stay; others as they are. Kept in the resume points of this try."""
    limit, resume = spec.edit.size_limit, tries.present.checkpoint
    if spec.removes.spread or limit is None or limit.decode_time is None:
        return spec, None
    found = resume.load_json(FITTED)
    if found is None:
        with tries.present.clock.stage("allocate"):
            found = model.ranks.first(lambda: _fitted(spec, model, tries))
        resume.save_json(FITTED, found)
    return spec.with_count(found["count"]), found["foreseen"]


def _fitted(spec: CompressionSpec, model: LoadedModel, tries: Tries) -> dict[str, Any]:
    decode_time = _decode_time(spec, model, tries.shared.events)
    with _of_this_try(tries):
        count, foreseen = fitted(spec, model.source, model.architecture, decode_time, within=tries.bound)
    return {"count": count, "foreseen": foreseen}


@contextmanager
def _of_this_try(tries: Tries) -> Iterator[None]:
    """Of a further try, whose bound is tighter than the spec's, a search that finds nothing is the end of the tries."""
    try:
        yield
    except InvalidSpec as error:
        if tries.number == 1:
            raise
        raise tries.given_up() from error


def _rule(params: MethodParams, facts: AllocationFacts) -> Callable[[float], Mapping[str, float]]:
    """A function from a global sparsity to the sparsities of layers by another allocator."""
    return lambda sparsity: method_of("allocate", params).function(facts, sparsity, params)


def _decode_time(spec: CompressionSpec, model: LoadedModel, events: Events) -> Callable[[Outcome], float]:
    """A function that predicts the time of a decode step, as a fraction of the dense model's."""
    budget = memory_budget(spec.compute.memory_budget, model.device)
    resident = whole_models(spec, model.source, model.architecture, budget) > 1
    return removal_of(spec).decode_time(spec, model, resident, events)


def _mean(model: LoadedModel, sparsity: Mapping[str, float]) -> float:
    removed = math.fsum(sparsity[layer.name] * layer.parameters for layer in model.architecture.layers)
    return removed / model.architecture.prunable_parameters


def _metrics(
    params: MethodParams,
    seed: int,
    model: LoadedModel,
    calibration: Calibration | None,
    stats: Statistics,
    run: Run,
) -> Mapping[str, float]:
    """Layer name -> metric of an allocator with these parameters, on every dense block; empty if it measures
    nothing."""
    method = method_of("allocate", params)
    if method.measure is None:
        return {}
    looks_at_text = bool(method.needs & ~params.waives)
    key = environment(model) | {
        "allocate": params.model_dump(mode="json", exclude=set(params.unmeasured)),
        "calibration": calibration.key if calibration and looks_at_text else "",
        "seed": seed,
    }
    found: dict[str, float] | None = run.cache.json("allocator-metrics", key)
    if found is None:
        found = {}
        traces: Mapping[str, float] = {}
        if Stat.CURVATURE in method.needs:
            traces = curvature(model, needed(calibration, "/calibrate"), run, seed=seed)
        for block in range(model.architecture.blocks):
            layers = model.architecture.block(block)
            tensors = block_tensors(model, block)
            dense = DenseBlock(
                layers,
                {layer.name: tensors[layer.weight] for layer in layers},
                {layer.stream: stats.get(f"{block}/{layer.stream}", LinearStats()) for layer in layers},
                {layer.name: traces[layer.name] for layer in layers if traces},
            )
            found |= _measured(method, dense, params)
            run.events.progress(block + 1, model.architecture.blocks, "measured block")
        run.cache.keep_json("allocator-metrics", key, found)
    return found


def _measured(method: Method, block: DenseBlock, params: MethodParams) -> Mapping[str, float]:
    """Layer name -> metric of the layers of one block. Raises NumericalFailure if one, or a weight, is not finite."""
    for name, weight_OI in block.weights.items():
        if not finite(weight_OI):
            raise NumericalFailure(f"{name}: its weights are infinite or NaN", "check the dense model")
    found: Mapping[str, float] = needed(method.measure, "a measure of the allocator")(block, params)
    for name, metric in found.items():
        if not math.isfinite(metric):
            raise NumericalFailure(f"{name}: what {method.name} measures is {metric}", "check the dense model")
    return found


def _ratio_text(spec: CompressionSpec, model: LoadedModel, sources: Sources) -> Calibration:
    """The windows of the evaluation that the ratio bounds."""
    params = needed(spec.ratio_text, "/prune/perplexity_ratio")
    pointer = f"/evaluate/{spec.evaluate.index(params)}"

    def read(ref: DataRef, wanted: Wanted) -> Tokens:
        return load_tokens(ref, model.tokenizer, sources, pointer, wanted, vocabulary=model.architecture.vocabulary)

    return Calibration(measured_windows(params, read, pointer).ids_NL, params.label)


def _first_tokens(calibration: Calibration, tokens: int) -> Tensor:
    windows = max(1, tokens // calibration.windows_NT.shape[1])
    return calibration.windows_NT[:windows]


def _within_ratio(spec: CompressionSpec, facts: AllocationFacts, trials: Trials, tries: Tries) -> Allocation:
    """The highest sparsity whose trial keeps the ratio, by bisection: perplexity grows with sparsity."""
    bound = needed(tries.bound, "/prune/perplexity_ratio")
    dense = trials.loss({layer.name: 0.0 for layer in facts.layers})
    best = Allocation(0.0, {layer.name: 0.0 for layer in facts.layers}, facts.metrics, 1.0)
    low, high = 0, math.ceil(tries.below / RATIO_STEP)  # in steps: low keeps the ratio, high does not
    while high - low > 1:
        middle = (low + high) // 2
        sparsity = removal_of(spec).spread(spec, facts, middle * RATIO_STEP)
        ratio = math.exp(min(trials.loss(sparsity) - dense, 100.0))
        if ratio <= bound:
            low, best = middle, Allocation(middle * RATIO_STEP, sparsity, facts.metrics, ratio)
        else:
            high = middle
    return best
