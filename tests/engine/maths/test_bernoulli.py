"""Estimates of a gradient by chance beside their known means, and the projection beside the optimum's conditions."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from workers.engine.maths.bernoulli import exact_gradient, papers_gradient, probabilities, projected

SCORES_N = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)
COSTS_N = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
MASKS_MN = torch.tensor([*product([False, True], repeat=3)])
CHANCE_M = torch.where(MASKS_MN, SCORES_N, 1 - SCORES_N).prod(dim=1)


def mean_of(estimate: Callable[[Tensor], Tensor], samples: int) -> Tensor:
    """Over all that chance can draw."""
    mean_N = torch.zeros(3, dtype=torch.float64)
    for numbers in product(range(len(MASKS_MN)), repeat=samples):
        mean_N += CHANCE_M[[*numbers]].prod() * estimate(MASKS_MN[[*numbers]])
    return mean_N


@pytest.mark.parametrize("samples", [2, 3])
def test_the_papers_estimate_has_the_mean_that_its_form_gives(samples: int) -> None:
    baseline = float(COSTS_N @ SCORES_N)
    found_N = mean_of(
        lambda drawn_KN: papers_gradient(drawn_KN.double() @ COSTS_N, baseline, drawn_KN, SCORES_N), samples
    )
    expected_N = samples / (samples - 1) * COSTS_N * (SCORES_N * (1 - SCORES_N)).sqrt()
    assert torch.allclose(found_N, expected_N, rtol=1e-5)


@pytest.mark.parametrize("samples", [2, 3])
def test_a_baseline_that_has_the_steps_own_losses_takes_a_part_of_the_mean(samples: int) -> None:
    window, mean = 5, float(COSTS_N @ SCORES_N)

    def estimate(drawn_KN: Tensor) -> Tensor:
        loss_K = drawn_KN.double() @ COSTS_N
        return papers_gradient(loss_K, mean + (float(loss_K.mean()) - mean) / window, drawn_KN, SCORES_N)

    expected_N = (samples - 1 / window) / (samples - 1) * COSTS_N * (SCORES_N * (1 - SCORES_N)).sqrt()
    assert torch.allclose(mean_of(estimate, samples), expected_N, rtol=1e-5)


@pytest.mark.parametrize("samples", [2, 3])
def test_the_exact_estimate_is_unbiased(samples: int) -> None:
    """Of a loss that is linear, and of one in which units depend on one another."""
    linear_N = mean_of(lambda drawn_KN: exact_gradient(100 + drawn_KN.double() @ COSTS_N, drawn_KN, SCORES_N), samples)
    assert torch.allclose(linear_N, COSTS_N)
    both_N = mean_of(
        lambda drawn_KN: exact_gradient((drawn_KN[:, 0] & drawn_KN[:, 1]).double(), drawn_KN, SCORES_N), samples
    )
    assert torch.allclose(both_N, torch.tensor([0.4, 0.1, 0], dtype=torch.float64), atol=1e-12)


def test_what_is_not_left_to_chance_gets_no_gradient() -> None:
    drawn_KN = torch.tensor([[True, False, True], [True, False, False]])
    loss_K, scores_N = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0, 0.5])
    for found_N in (exact_gradient(loss_K, drawn_KN, scores_N), papers_gradient(loss_K, 1.5, drawn_KN, scores_N)):
        assert found_N.tolist()[:2] == [0, 0]
        assert found_N[2] < 0, "the loss is lower with it"


def test_a_loss_that_is_always_the_same_moves_nothing() -> None:
    loss_K = torch.full((3,), 7.0)
    for drawn_KN in MASKS_MN.split(3)[:2]:
        assert not papers_gradient(loss_K, 7.0, drawn_KN, SCORES_N).any()
        assert not exact_gradient(loss_K, drawn_KN, SCORES_N).any()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.99])
def test_the_projection_is_the_nearest_point(seed: int, share: float) -> None:
    point_N = torch.randn(50, generator=torch.Generator().manual_seed(seed)) * 0.7 + 0.5
    budget = 50 * share
    found_N = projected(point_N, budget)
    assert found_N.dtype == torch.float32
    assert ((found_N >= 0) & (found_N <= 1)).all()
    assert found_N.double().sum() <= budget + 1e-4
    assert torch.allclose(projected(found_N, budget), found_N, atol=1e-6)
    # The optimum's conditions: entries between the bounds are shifted by the same v >= 0, which is 0 unless the budget
    # is spent; those at 0 lie below v, those at 1 above 1 + v.
    shift_N, inner_N = point_N - found_N, (found_N > 0) & (found_N < 1)
    shift = float((shift_N[inner_N] if inner_N.any() else point_N[found_N == 0]).max().clamp(min=0))
    assert torch.allclose(shift_N[inner_N], torch.tensor(shift), atol=1e-5)
    assert shift < 1e-5 or abs(float(found_N.sum()) - budget) < 1e-3
    assert (point_N[found_N == 0] <= shift + 1e-5).all()
    assert (point_N[found_N == 1] >= 1 + shift - 1e-5).all()


def test_the_projection_by_hand() -> None:
    # 0.9 + 0.6 + 0.2 - 3 v = 1.1 where all stay above 0.
    assert torch.allclose(projected(torch.tensor([0.9, 0.6, 0.2]), 1.1), torch.tensor([0.7, 0.4, 0.0]), atol=1e-6)
    assert projected(torch.tensor([1.5, -1.0, 0.5]), 2.0).tolist() == [1.0, 0.0, 0.5]


def test_probabilities_follow_the_importance_around_their_mean() -> None:
    found_N = probabilities(torch.tensor([3.0, 1.0, 2.0, 6.0]), 0.6)
    assert found_N.argsort().tolist() == [1, 2, 0, 3]
    assert found_N.mean().item() == pytest.approx(0.6)
    assert torch.allclose(probabilities(torch.ones(4), 0.7), torch.tensor(0.7))
    # Of two, the deviation without bias is sqrt(2) times their distance from the mean.
    one = torch.tensor(0.5**0.5).sigmoid()
    assert torch.allclose(probabilities(torch.tensor([0.0, 2.0]), 0.5), torch.stack([1 - one, one]))
    assert probabilities(torch.tensor([3.0]), 0.7).tolist() == pytest.approx([0.7])
    assert probabilities(torch.tensor([0.0, 0.0, 100.0]), 0.99).max() == 1
