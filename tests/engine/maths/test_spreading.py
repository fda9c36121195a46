"""The maps that spread sparsity over units: by hand, at their bounds, and over many random units."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import pytest

from workers.engine.architectures.architecture import LinearFacts
from workers.engine.maths.spreading import MOST, by_block, in_unit_range, scaled, shifted, shifted_blocks

Spread = Callable[[Sequence[float], Sequence[float], float], list[float]]


def mean(shares: Sequence[float], weights: Sequence[float]) -> float:
    return math.fsum(s * w for s, w in zip(shares, weights, strict=True)) / math.fsum(weights)


def test_scaled_by_hand() -> None:
    # c (1 x 1 + 3 x 2 + 1 x 3) / 5 = 0.5, so c = 0.25.
    assert scaled([1, 2, 3], [1, 3, 1], 0.5) == pytest.approx([0.25, 0.5, 0.75])


def test_shifted_by_hand() -> None:
    # Mean of the wanted: (0 x 3 + 0.2 x 1) / 4 = 0.05; all move up by 0.45.
    assert shifted([0, 0.2], [3, 1], 0.5) == pytest.approx([0.45, 0.65])


def test_what_would_pass_the_bound_goes_to_the_others() -> None:
    # Without a bound c = 0.8 / 2 and the last gets 1.2. It gets 0.99; the others 2.4 - 0.99 = 1.41, in ratio 1 to 2.
    assert scaled([1, 2, 3], [1, 1, 1], 0.8) == pytest.approx([0.47, 0.94, 0.99])
    # Shifted without a bound: 0.5, 0.7, 1.2. The 0.21 too much moves the others up by 0.105 each.
    assert shifted([0, 0.2, 0.7], [1, 1, 1], 0.8) == pytest.approx([0.605, 0.805, 0.99])


def test_a_floor_is_filled_from_the_others() -> None:
    # Unbounded 0.25, 0.5, 0.75. The first gets 0.4; the others 1.5 - 0.4 = 1.1, in ratio 2 to 3.
    assert scaled([1, 2, 3], [1, 1, 1], 0.5, least=0.4) == pytest.approx([0.4, 0.44, 0.66])
    # A floor above the target is not kept: it would raise the mean.
    assert scaled([1, 2, 3], [1, 1, 1], 0.5, least=0.7) == pytest.approx([0.5] * 3)


@pytest.mark.parametrize("spread", [scaled, shifted])
class TestRandomUnits:
    @pytest.mark.parametrize("seed", range(20))
    def test_bounds_mean_order_and_growth(self, spread: Spread, seed: int) -> None:
        chance = random.Random(seed)
        wanted = [chance.uniform(0.01, 2) for _ in range(24)]
        weights = [chance.randint(1, 10**9) for _ in wanted]
        before = [0.0] * len(wanted)
        for target in (0.0, 0.01, 0.3, 0.5, 0.7, 0.9, 0.98):
            shares = spread(wanted, weights, target)
            assert all(0 <= share <= MOST for share in shares)
            assert mean(shares, weights) == pytest.approx(target, abs=1e-12)
            by_want = [share for _, share in sorted(zip(wanted, shares, strict=True))]
            assert by_want == sorted(by_want)
            assert all(a <= b for a, b in zip(before, shares, strict=True))
            before = shares

    def test_a_target_of_zero_is_exactly_zero(self, spread: Spread) -> None:
        assert spread([1.0, 2.0], [3, 1], 0.0) == [0.0, 0.0]

    def test_a_target_above_the_bound_is_uniform(self, spread: Spread) -> None:
        assert spread([1.0, 2.0], [3, 1], 0.995) == pytest.approx([0.995, 0.995])


def test_in_unit_range() -> None:
    assert in_unit_range([3, 1, 2]) == [1, 0, 0.5]
    assert in_unit_range([2, 2]) == [0, 0]


def test_blocks() -> None:
    layers = [LinearFacts("c", 1, "x", (1, 4)), LinearFacts("a", 0, "x", (3, 4)), LinearFacts("d", 1, "y", (1, 4))]
    blocks = by_block(layers)
    assert [[layer.name for layer in block] for block in blocks] == [["a"], ["c", "d"]]
    # 12 and 8 parameters; wanted mean 0.1 x 8 / 20 = 0.04.
    assert shifted_blocks(blocks, [0, 0.1], 0.5) == pytest.approx({"a": 0.46, "c": 0.56, "d": 0.56})
