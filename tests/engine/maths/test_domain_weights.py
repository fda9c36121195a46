from __future__ import annotations

import math

import pytest

from workers.engine.maths.domain_weights import SPREAD_EVENLY, reweighted

WEIGHTS = [0.67, 0.045, 0.045, 0.02, 0.045, 0.025, 0.15]
"""Sheared LLaMA's at its start, and the reference losses of its 1.3 B model."""
REFERENCES = [1.9643, 0.7459, 2.1393, 1.6117, 1.7590, 1.4449, 2.1251]


def test_stays_on_the_simplex_and_no_domain_vanishes() -> None:
    weights = WEIGHTS
    for step in range(200):
        losses = [reference + (5 if i == step % 2 else 0) for i, reference in enumerate(REFERENCES)]
        weights = reweighted(weights, losses, REFERENCES)
        assert math.fsum(weights) == pytest.approx(1, abs=1e-12)
        assert min(weights) >= SPREAD_EVENLY / len(weights)


@pytest.mark.parametrize("excess", [-1.0, 0.0, 0.3])
def test_the_same_excess_for_all_changes_nothing(excess: float) -> None:
    found = reweighted(WEIGHTS, [reference + excess for reference in REFERENCES], REFERENCES)
    assert found == pytest.approx(WEIGHTS, abs=SPREAD_EVENLY)


def test_more_excess_gains_weight() -> None:
    weights = [0.5, 0.5]
    for _ in range(10):
        weights = reweighted(weights, [2.1, 3.0], [2.0, 3.0])
    # Ten times exp(0.1): e, but for what is spread evenly.
    assert weights[0] / weights[1] == pytest.approx(math.e, rel=2e-3)


def test_by_hand() -> None:
    # exp(log 3) = 3 of the first to 1 of the second, less a ten-thousandth of which both get half.
    found = reweighted([0.5, 0.5], [1 + math.log(3), 1.0], [1.0, 1.0])
    assert found == pytest.approx([0.75 * 0.9999 + 0.00005, 0.25 * 0.9999 + 0.00005], abs=1e-12)


def test_a_loss_that_runs_away_gives_no_infinity() -> None:
    assert reweighted([0.5, 0.5], [2000.0, 1.0], [1.0, 1.0]) == pytest.approx([1, 0], abs=1e-4)
