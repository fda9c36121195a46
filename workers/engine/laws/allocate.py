"""Laws of allocators, which spread the sparsity over layers. A subclass has a fixture `method`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from workers.engine.architectures.architecture import LinearFacts
from workers.engine.contracts.facts import AllocationFacts, DenseBlock
from workers.engine.contracts.params import OF_INPUTS, Stat
from workers.engine.laws.random_layers import TOKENS, inputs_of, same, stats_of, tensors_in, weight
from workers.engine.registry import Method, compared, method_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SHAPES = {"mlp_input": (40, 30), "mlp_hidden": (10, 20)}


def dense_blocks(needs: Stat, *, alike: bool) -> list[DenseBlock]:
    """Four blocks of two layers of unequal size, equal to one another or not, with the statistics needed."""
    found = []
    for index in range(4):
        seed = 0 if alike else index
        layers = [LinearFacts(f"{index}.{stream}", index, stream, shape) for stream, shape in SHAPES.items()]
        weights = {layer.name: (1 + seed) * weight(seed, *layer.shape) ** (1 + 2 * (seed % 2)) for layer in layers}
        stats = {
            layer.stream: stats_of(inputs_of(seed, TOKENS, layer.shape[1]), needs & (OF_INPUTS | Stat.GRAM))
            for layer in layers
        }
        traces = {layer.name: 1.0 + seed + layer.shape[0] for layer in layers} if Stat.CURVATURE in needs else {}
        found.append(DenseBlock(layers, weights, stats, traces))
    return found


def smooth_loss(sparsity: Mapping[str, float]) -> float:
    """Convex, and least forgiving to the first blocks."""
    return sum(s**2 / (1 + int(name[0])) for name, s in sparsity.items())


def constant_loss(sparsity: Mapping[str, float]) -> float:
    return 3.0


def facts_for(method: Method, *, alike: bool = False, loss: Any = constant_loss) -> AllocationFacts:
    blocks = dense_blocks(method.needs & ~method.defaults.waives, alike=alike)
    metrics: dict[str, float] = {}
    for block in blocks:
        metrics |= method.measure(block, method.defaults) if method.measure else {}
    layers = [layer for block in blocks for layer in block.layers]
    rules = {params.method: rule(params, alike=alike, loss=loss) for params in compared(method.defaults)}
    return AllocationFacts(layers, metrics, loss if Stat.LOSS in method.needs else None, rules)


def rule(params: Any, *, alike: bool, loss: Any) -> Callable[[float], Mapping[str, float]]:
    method = method_of("allocate", params)
    facts = facts_for(method, alike=alike, loss=loss)
    return lambda sparsity: method.function(facts, sparsity, params)


def mean_of(facts: AllocationFacts, found: Mapping[str, float]) -> float:
    parameters = sum(layer.parameters for layer in facts.layers)
    return math.fsum(found[layer.name] * layer.parameters for layer in facts.layers) / parameters


class AllocateLaws:
    """Facts are those of four blocks of two layers each."""

    @pytest.mark.parametrize("loss", [constant_loss, smooth_loss])
    @pytest.mark.parametrize("sparsity", [0.0, 0.02, 0.3, 0.5, 0.7, 0.95, 0.995])
    def test_keeps_the_mean_and_the_bounds(self, method: Method, sparsity: float, loss: Any) -> None:
        """Every layer gets a sparsity in [0, 1), and their mean, weighted by parameters, is the one asked for."""
        facts = facts_for(method, loss=loss)
        found = method.function(facts, sparsity, method.defaults)
        assert set(found) == {layer.name for layer in facts.layers}
        assert all(0 <= s < 1 for s in found.values())
        assert mean_of(facts, found) == pytest.approx(sparsity, abs=1e-9)

    def test_is_monotone_in_the_target(self, method: Method) -> None:
        """No layer loses less where more is to go in all."""
        facts = facts_for(method)
        before = dict.fromkeys((layer.name for layer in facts.layers), 0.0)
        for target in (0.1, 0.4, 0.6, 0.8, 0.95):
            found = method.function(facts, target, method.defaults)
            assert all(before[name] <= found[name] + 1e-12 for name in found)
            before = dict(found)

    def test_is_uniform_where_blocks_are_alike(self, method: Method) -> None:
        """Blocks that are alike get the same sparsities; not so of a method declared `by_place`."""
        # A layer's own metric may differ from its block's: then blocks are alike, layers need not be.
        facts = facts_for(method, alike=True)
        found = method.function(facts, 0.6, method.defaults)
        counts = [len({round(found[f"{index}.{stream}"], 9) for index in range(4)}) for stream in SHAPES]
        assert (counts == [1] * len(SHAPES)) != method.by_place, "declare `by_place` where the place counts, only there"

    def test_measures_every_layer_finitely_and_leaves_the_block_alone(self, method: Method) -> None:
        """`measure` gives each layer of a block a finite number, the same each time, and writes to nothing."""
        if method.measure is None:
            return
        for block in dense_blocks(method.needs, alike=False):
            weights = {name: tensor.clone() for name, tensor in block.weights.items()}
            stats = {name: tensors_in(s) for name, s in block.stats.items()}
            found = method.measure(block, method.defaults)
            assert set(found) == {layer.name for layer in block.layers}
            assert all(math.isfinite(metric) for metric in found.values())
            assert found == method.measure(block, method.defaults)
            assert same(block.weights, weights)
            assert all(same(tensors_in(block.stats[name]), before) for name, before in stats.items())

    def test_is_deterministic_and_leaves_the_facts_alone(self, method: Method) -> None:
        """The same facts give the same sparsities, and are not changed."""
        facts = facts_for(method, loss=smooth_loss)
        layers, metrics = list(facts.layers), dict(facts.metrics)
        first = method.function(facts, 0.6, method.defaults)
        assert method.function(facts, 0.6, method.defaults) == first
        assert (list(facts.layers), dict(facts.metrics)) == (layers, metrics)

    def test_tries_only_what_keeps_the_bounds(self, method: Method) -> None:
        """A method that needs `Stat.LOSS` tries sparsities of every layer in [0, 1), and no other tries any."""
        tried: list[Mapping[str, float]] = []

        def loss(sparsity: Mapping[str, float]) -> float:
            tried.append(dict(sparsity))
            return smooth_loss(sparsity)

        facts = facts_for(method, loss=loss)
        method.function(facts, 0.8, method.defaults)
        assert bool(tried) == (facts.loss is not None)
        assert all(trial.keys() == {layer.name for layer in facts.layers} for trial in tried)
        assert all(0 <= s < 1 for trial in tried for s in trial.values())

    def test_parameters_survive_json(self, method: Method) -> None:
        """Parameters come back from JSON as they were."""
        params = method.defaults
        assert method.params.model_validate_json(params.model_dump_json()) == params
