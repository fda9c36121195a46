"""Chances against drawing often and against the formulas of the authors' code; ends and settled values by hand."""

from __future__ import annotations

import math

import pytest
import torch

from workers.engine.maths.hard_concrete import (
    BOUND,
    chance_of_zero,
    clamp_,
    drawn,
    noise,
    settled,
)

ALPHAS = [-BOUND, -1.0, 0.0, 2.0, BOUND]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_drawing_often_gives_the_chances(alpha: float) -> None:
    alpha_N = torch.full((1_000_000,), alpha)
    z_N = drawn(alpha_N, noise(alpha_N, torch.Generator().manual_seed(1)))
    one = 1 - 1 / (1 + math.exp(alpha - 2 / 3 * math.log(11)))  # of z = 1: the same with alpha turned round
    for value, chance in ((0, chance_of_zero(alpha_N[0]).item()), (1, one)):
        assert (z_N == value).double().mean().item() == pytest.approx(chance, abs=1e-3)
    assert z_N.min() >= 0
    assert z_N.max() <= 1


def test_chances_of_the_notes() -> None:
    # Measured over 2e6 samples: alpha of 4.605, 0, -4.605.
    assert chance_of_zero(torch.tensor([BOUND, 0.0, -BOUND])).tolist() == pytest.approx([0.002, 0.168, 0.953], abs=5e-4)


def test_a_gate_learns_only_between_its_ends() -> None:
    alpha_N = torch.zeros(1000, requires_grad=True)
    z_N = drawn(alpha_N, noise(alpha_N, torch.Generator().manual_seed(0)))
    z_N.sum().backward()
    assert alpha_N.grad is not None
    assert torch.equal(alpha_N.grad > 0, ((z_N > 0) & (z_N < 1)).detach())


def test_the_smallest_and_largest_number_give_no_infinity() -> None:
    z_N = drawn(torch.tensor([-BOUND, BOUND]), torch.tensor([1e-6, 1 - 1e-6]))
    assert z_N.tolist() == [0, 1]
    u_N = noise(torch.zeros(10_000))
    assert u_N.min() > 0
    assert u_N.max() < 1


def test_the_same_generator_gives_the_same_gates() -> None:
    alpha_N = torch.zeros(8)
    first, second = (noise(alpha_N, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)


def test_without_chance_open_gates_keep_their_value() -> None:
    alpha_N = torch.tensor([BOUND, 0.0, -1.0, 2.0])
    values_N = settled(alpha_N, torch.tensor([False, False, True, True]))
    assert values_N.tolist() == pytest.approx([0.99604, 0.5, 0, 0], abs=1e-5)


def test_clamping_stays_within_what_can_be_learnt() -> None:
    alpha_N = torch.tensor([-9.0, 0.5, 10.0])
    clamp_(alpha_N)
    assert alpha_N.tolist() == pytest.approx([-4.60517, 0.5, 4.60517])
