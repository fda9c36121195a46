"""The measurements and sparsities of each allocator: by hand, at the bounds, over random models."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from workers.engine.architectures.architecture import LinearFacts
from workers.engine.contracts.facts import AllocationFacts, DenseBlock, LinearStats
from workers.engine.contracts.params import Stat
from workers.engine.maths.spectrum import alpha_mid, alpha_peak, eigenvalues, window_eigenvalues
from workers.engine.methods.allocate import alpha_pruning, atp, dlp, isc, owl
from workers.engine.methods.allocate.alpha_pruning import AlphaPruningParams
from workers.engine.methods.allocate.atp import AtpParams
from workers.engine.methods.allocate.dlp import DlpParams
from workers.engine.methods.allocate.isc import IscParams
from workers.engine.methods.allocate.owl import OwlParams


def even(metrics: Sequence[float]) -> AllocationFacts:
    """One layer of 100 weights a block, and what was measured of it."""
    layers = [LinearFacts(f"{block}.a", block, "x", (10, 10)) for block in range(len(metrics))]
    return AllocationFacts(layers, {layer.name: metric for layer, metric in zip(layers, metrics, strict=True)})


def values(found: Mapping[str, float]) -> list[float]:
    return list(found.values())


def mean(layers: Sequence[LinearFacts], found: Mapping[str, float]) -> float:
    return math.fsum(found[layer.name] * layer.parameters for layer in layers) / sum(i.parameters for i in layers)


def block_of(weights: Mapping[str, Tensor], sq_means: Mapping[str, Tensor]) -> DenseBlock:
    """Layers that each read the stream of their own name."""
    layers = [LinearFacts(name, 0, name, tuple(weight.shape)) for name, weight in weights.items()]  # type: ignore[arg-type]
    return DenseBlock(layers, weights, {name: LinearStats(1, 1, sq) for name, sq in sq_means.items()}, {})


class TestAlphaPruning:
    def test_by_hand(self) -> None:
        # Alphas 2, 3, 6 stand at 0, 1/4, 1; spread 0.2 makes them 0.8, 0.9, 1.2, whose mean is 2.9 / 3.
        found = alpha_pruning.allocate(even([2, 3, 6]), 0.58, AlphaPruningParams(spread=0.2))
        assert values(found) == pytest.approx([0.48, 0.54, 0.72])

    def test_a_block_counts_with_the_plain_mean_of_its_layers(self) -> None:
        layers = [LinearFacts("a", 0, "x", (1, 1)), LinearFacts("b", 0, "x", (9, 1)), LinearFacts("c", 1, "x", (10, 1))]
        # 1 and 5 make 3, as the one of the other block, whatever the sizes: nothing to choose between.
        found = alpha_pruning.allocate(AllocationFacts(layers, {"a": 1, "b": 5, "c": 3}), 0.5, AlphaPruningParams())
        assert values(found) == pytest.approx([0.5] * 3)

    def test_layers_alone(self) -> None:
        layers = [LinearFacts("a", 0, "x", (1, 1)), LinearFacts("b", 0, "x", (3, 1))]
        params = AlphaPruningParams(granularity="matrix", spread=0.5)
        # 0.5 and 1.5 with weights 1 and 3 have the mean 1.25.
        found = alpha_pruning.allocate(AllocationFacts(layers, {"a": 2, "b": 4}), 0.5, params)
        assert found == pytest.approx({"a": 0.2, "b": 0.6})

    def test_mixed_spreads_each_blocks_own_share(self) -> None:
        layers = [LinearFacts(name, "acbd".index(name) // 2, "x", (2, 2)) for name in "acbd"]
        facts = AllocationFacts(layers, {"a": 2, "c": 4, "b": 5, "d": 3})
        params = AlphaPruningParams(granularity="mixed", spread=0.2, matrix_spread=0.5)
        # Blocks: means 3 and 4, so 0.4 and 0.6. Within: 0.5 and 1.5 times that.
        found = alpha_pruning.allocate(facts, 0.5, params)
        assert found == pytest.approx({"a": 0.2, "c": 0.6, "b": 0.9, "d": 0.3})
        assert found != pytest.approx(alpha_pruning.allocate(facts, 0.5, AlphaPruningParams(spread=0.2)))

    def test_min_sparsity(self) -> None:
        # 0.35, 0.5, 0.65 without it. The first gets 0.45; the others 1.05, in ratio 1 to 1.3.
        found = alpha_pruning.allocate(even([1, 2, 3]), 0.5, AlphaPruningParams(spread=0.3, min_sparsity=0.45))
        assert values(found) == pytest.approx([0.45, 1.05 / 2.3, 1.05 * 1.3 / 2.3])

    @pytest.mark.parametrize("target", [0.5, 0.7, 0.8, 0.9, 0.97])
    def test_the_default_spread_stays_off_the_bound(self, target: float) -> None:
        """0.3 where there is room; else the most pruned block is near 0.99, and not cut there."""
        facts = even([1, 2, 3, 9])
        found = values(alpha_pruning.allocate(facts, target, AlphaPruningParams()))
        assert max(found) < 0.99
        # Four equal blocks standing at 0, 1/8, 1/4, 1: mean 11/32. See how far apart least and most are.
        ratio = max(found) / min(found)
        spread = (ratio - 1) / (ratio + 1)
        largest = (0.99 - target) / (target + 0.99 - 2 * 0.99 * 11 / 32)
        assert spread == pytest.approx(min(0.3, 0.9 * largest))

    @pytest.mark.parametrize("seed", range(10))
    def test_the_default_grows_with_the_target(self, seed: int) -> None:
        chance = random.Random(seed)
        facts = even([chance.choice([1, 2 + chance.random(), 9]) for _ in range(12)])
        before = [0.0] * 12
        for target in [i / 50 for i in range(1, 50)]:
            found = values(alpha_pruning.allocate(facts, target, AlphaPruningParams()))
            assert all(a <= b + 1e-12 for a, b in zip(before, found, strict=True))
            before = found

    @pytest.mark.parametrize("metric", ["alpha_peak", "alpha_mid"])
    def test_measures_every_layer(self, metric: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        weights = {name: torch.randn(40, 24 + i, generator=generator) for i, name in enumerate("abc")}
        block = block_of(weights, {})
        found = alpha_pruning.measure(block, AlphaPruningParams(metric=metric, lower_bound="fixed"))
        one = alpha_mid if metric == "alpha_mid" else lambda found_N: alpha_peak(found_N, "fixed")
        assert found == {name: one(eigenvalues(weight)) for name, weight in weights.items()}
        farms = alpha_pruning.measure(
            block, AlphaPruningParams(metric=metric, lower_bound="fixed", esd="farms", windows=3)
        )
        assert farms == {name: one(window_eigenvalues(w, side=2000, count=3)) for name, w in weights.items()}
        assert all(farms[name] != found[name] for name in farms)

    def test_a_heavier_tail_has_a_smaller_alpha(self) -> None:
        generator = torch.Generator().manual_seed(0)
        noise_OI = torch.randn(96, 96, generator=generator)
        trained_OI = noise_OI * torch.randn(96, generator=generator).exp()
        found = alpha_pruning.measure(block_of({"noise": noise_OI, "trained": trained_OI}, {}), AlphaPruningParams())
        assert found["trained"] < found["noise"]


class TestOwl:
    def test_outliers_by_hand(self) -> None:
        # Scores |W| x rms(input): a: 2, 2, 12 | 2, 4, 6. b: 0, 4. Their mean is 32 / 8 = 4.
        weights = {"a": torch.tensor([[1.0, -2, 3], [1, 4, 1.5]]), "b": torch.tensor([[0.0, 4]])}
        block = block_of(weights, {"a": torch.tensor([4.0, 1, 16]), "b": torch.ones(2)})
        # Above 4 x 1.4 = 5.6: 12 and 6. Not by layer: b's own mean is 2, and its 4 an outlier of that.
        assert owl.measure(block, OwlParams(outlier_multiple=1.4)) == {"a": 25.0, "b": 25.0}
        assert owl.measure(block, OwlParams(outlier_multiple=2)) == {"a": 12.5, "b": 12.5}
        assert owl.measure(block, OwlParams(outlier_multiple=50)) == {"a": 0.0, "b": 0.0}

    def test_more_outliers_are_pruned_less_by_hand(self) -> None:
        # 1, 2, 5 stand at 0, 1/4, 1: 0.16 times that less than the first. Mean of the three: 0.2 / 3 less.
        found = owl.allocate(even([1, 2, 5]), 0.7, OwlParams(spread=0.08))
        first = 0.7 + 0.2 / 3
        assert values(found) == pytest.approx([first, first - 0.04, first - 0.16])

    def test_the_scale_of_inputs_does_not_matter(self) -> None:
        generator = torch.Generator().manual_seed(0)
        weight_OI, sq_mean_I = torch.randn(30, 40, generator=generator), torch.rand(40, generator=generator)
        plain, louder = (
            owl.measure(block_of({"a": weight_OI}, {"a": scale * sq_mean_I}), OwlParams(outlier_multiple=2))
            for scale in (1, 64)
        )
        assert plain == louder
        assert 0 < plain["a"] < 50


class TestDlp:
    def test_mean_score_by_hand(self) -> None:
        weights = {"a": torch.tensor([[1.0, -2], [3, 4]]), "b": torch.tensor([[2.0, -2]])}
        block = block_of(weights, {"a": torch.tensor([4.0, 1]), "b": torch.tensor([9.0, 1])})
        # a: 2 + 2 + 6 + 4, b: 6 + 2, over six weights.
        assert dlp.measure(block, DlpParams()) == pytest.approx({"a": 22 / 6, "b": 22 / 6})

    def test_a_higher_mean_is_pruned_more(self) -> None:
        found = dlp.allocate(even([1, 2, 3]), 0.7, DlpParams())
        assert values(found) == pytest.approx([0.55, 0.7, 0.85])


class TestIsc:
    def test_ranks_by_hand(self) -> None:
        # Ranks 2, 0, 1 of sensitivity; the most sensitive gets 0.1 less, the least 0.1 more than the target.
        assert values(isc.allocate(even([30, 1, 2]), 0.5, IscParams(spread=0.1))) == pytest.approx([0.4, 0.6, 0.5])

    def test_equals_share_a_rank(self) -> None:
        found = values(isc.allocate(even([1, 5, 5, 9]), 0.5, IscParams(spread=0.3)))
        assert found[1] == found[2]
        # Ranks 0, 1, 1, 3 in steps of 0.2: 0, -0.2, -0.2, -0.6, whose mean of -0.25 is taken back.
        assert found == pytest.approx([0.75, 0.55, 0.55, 0.15])

    def test_only_ranks_count_and_all_equal_is_uniform(self) -> None:
        first, second = (isc.allocate(even(m), 0.5, IscParams()) for m in ([1, 2, 3], [-1e9, 0.1, 1e30]))
        assert first == second
        assert values(isc.allocate(even([3, 3, 3]), 0.5, IscParams())) == pytest.approx([0.5] * 3)

    def test_sensitivity_is_per_weight_unless_summed(self) -> None:
        block = DenseBlock([LinearFacts("a", 0, "x", (2, 4))], {}, {}, {"a": 24.0})
        assert isc.measure(block, IscParams()) == {"a": 3.0}
        assert isc.measure(block, IscParams(average=False)) == {"a": 24.0}


class TestAtp:
    def test_progression_by_hand(self) -> None:
        found = atp.allocate(even([0, 0, 0, 0]), 0.5, AtpParams(beta=0.1))
        assert values(found) == pytest.approx([0.35, 0.45, 0.55, 0.65])

    def test_unequal_blocks_keep_the_step_and_the_mean(self) -> None:
        layers = [LinearFacts("b", 1, "x", (1, 30)), LinearFacts("a", 0, "x", (1, 10))]
        found = atp.allocate(AllocationFacts(layers, {}), 0.5, AtpParams(beta=0.2))
        # Weights 1 and 3: 0.5 = a + 0.2 x 3/4.
        assert found == pytest.approx({"a": 0.35, "b": 0.55})

    @pytest.mark.parametrize(("target", "ends"), [(0.3, (0.0, 0.6)), (0.5, (0.01, 0.99)), (0.7, (0.41, 0.99))])
    def test_too_large_a_step_is_cut(self, target: float, ends: tuple[float, float]) -> None:
        found = values(atp.allocate(even([0] * 5), target, AtpParams(beta=1)))
        assert (found[0], found[-1]) == pytest.approx(ends)

    @pytest.mark.parametrize("best", [0.0, 0.013, 0.05, 0.119, 0.145])
    def test_finds_the_step_of_least_loss(self, best: float) -> None:
        trials = []

        def loss(sparsity: Mapping[str, float]) -> float:
            """Lowest where the blocks are `best` apart."""
            trials.append(dict(sparsity))
            return (sparsity["1.a"] - sparsity["0.a"] - best) ** 2

        facts = even([0] * 5)
        facts = AllocationFacts(facts.layers, {}, loss)
        found = values(atp.allocate(facts, 0.7, AtpParams()))
        # The range is 2 x 0.29 / 4 = 0.145; the result is right to half of a fortieth, and was tried.
        assert found[1] - found[0] == pytest.approx(best, abs=0.145 / 80 + 1e-12)
        assert any(values(trial) == found for trial in trials)
        assert len(trials) <= 12
        assert any(values(trial) == pytest.approx([0.7] * 5) for trial in trials)
        assert all(mean(facts.layers, trial) == pytest.approx(0.7, abs=1e-9) for trial in trials)

    def test_a_loss_that_is_not_finite_never_wins(self) -> None:
        def loss(sparsity: Mapping[str, float]) -> float:
            return 1.0 if sparsity["1.a"] == sparsity["0.a"] else random.choice([math.nan, math.inf])

        found = atp.allocate(AllocationFacts(even([0, 0]).layers, {}, loss), 0.5, AtpParams())
        assert values(found) == pytest.approx([0.5, 0.5])

    def test_a_given_step_needs_no_loss(self) -> None:
        assert AtpParams(beta=0.01).waives == Stat.LOSS
        assert AtpParams().waives == Stat.NONE


def random_model(seed: int) -> AllocationFacts:
    """Six blocks of three layers of random sizes; the last two blocks larger, what is measured random."""
    chance = random.Random(seed)
    layers = [
        LinearFacts(f"{block}.{name}", block, name, (chance.randint(1, 500) * (1 + block // 4), chance.randint(1, 500)))
        for block in range(6)
        for name in "abc"
    ]
    per_block = [chance.expovariate(1) for _ in range(6)]
    return AllocationFacts(layers, {layer.name: per_block[layer.block] for layer in layers}, lambda sparsity: 1.0)


ALLOCATORS = [
    pytest.param(alpha_pruning.allocate, AlphaPruningParams(), id="alpha_pruning"),
    pytest.param(alpha_pruning.allocate, AlphaPruningParams(spread=0.9), id="alpha_pruning-wide"),
    pytest.param(
        alpha_pruning.allocate, AlphaPruningParams(granularity="matrix", min_sparsity=0.3), id="alpha_pruning-matrix"
    ),
    pytest.param(alpha_pruning.allocate, AlphaPruningParams(granularity="mixed"), id="alpha_pruning-mixed"),
    pytest.param(owl.allocate, OwlParams(), id="owl"),
    pytest.param(owl.allocate, OwlParams(spread=0.5), id="owl-wide"),
    pytest.param(dlp.allocate, DlpParams(), id="dlp"),
    pytest.param(isc.allocate, IscParams(), id="isc"),
    pytest.param(atp.allocate, AtpParams(), id="atp"),
    pytest.param(atp.allocate, AtpParams(beta=0.03), id="atp-given"),
]


@pytest.mark.parametrize(("allocate", "params"), ALLOCATORS)
class TestEveryAllocator:
    @pytest.mark.parametrize("seed", range(5))
    def test_bounds_mean_growth(self, allocate: Any, params: Any, seed: int) -> None:
        facts = random_model(seed)
        metrics = dict(facts.metrics)
        before = dict.fromkeys(metrics, 0.0)
        for target in (0.0, 0.1, 0.4, 0.6, 0.7, 0.85, 0.98):
            found = allocate(facts, target, params)
            assert found.keys() == metrics.keys()
            assert all(0 <= share <= 0.99 for share in found.values())
            assert mean(facts.layers, found) == pytest.approx(target, abs=1e-9)
            assert all(before[name] <= found[name] + 1e-12 for name in found)
            assert found == allocate(facts, target, params)
            before = found
        assert facts.metrics == metrics

    def test_a_target_of_zero_removes_nothing(self, allocate: Any, params: Any) -> None:
        assert set(allocate(random_model(0), 0.0, params).values()) == {0.0}

    def test_one_block(self, allocate: Any, params: Any) -> None:
        assert values(allocate(AllocationFacts(**vars(even([2.0])) | {"loss": len}), 0.6, params)) == pytest.approx(
            [0.6]
        )


@pytest.mark.parametrize(
    ("allocate", "params"),
    [
        (alpha_pruning.allocate, AlphaPruningParams(spread=0)),
        (owl.allocate, OwlParams(spread=0)),
        (dlp.allocate, DlpParams(spread=0)),
        (isc.allocate, IscParams(spread=0)),
        (atp.allocate, AtpParams(beta=0)),
    ],
    ids=["alpha_pruning", "owl", "dlp", "isc", "atp"],
)
def test_no_spread_is_uniform(allocate: Any, params: Any) -> None:
    assert values(allocate(random_model(0), 0.6, params)) == pytest.approx([0.6] * 18, abs=1e-12)


@pytest.mark.parametrize(
    ("allocate", "params"),
    [
        (alpha_pruning.allocate, AlphaPruningParams()),
        (owl.allocate, OwlParams()),
        (dlp.allocate, DlpParams()),
        (isc.allocate, IscParams()),
    ],
    ids=["alpha_pruning", "owl", "dlp", "isc"],
)
def test_equal_blocks_are_pruned_alike(allocate: Any, params: Any) -> None:
    assert values(allocate(even([2.5] * 7), 0.6, params)) == pytest.approx([0.6] * 7, abs=1e-12)
