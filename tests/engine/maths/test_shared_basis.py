"""Singular vectors that matrices share. O, I = rows and columns of a matrix, L = matrices, R = directions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from workers.engine.errors import NumericalFailure
from workers.engine.laws.random_layers import seeded
from workers.engine.maths.shared_basis import shared_basis


def matrices(outputs: int = 6, inputs: int = 4, count: int = 5) -> list[Tensor]:
    return [torch.randn(outputs, inputs, generator=seeded(seed)) for seed in range(count)]


@pytest.mark.parametrize(("outputs", "inputs"), [(6, 4), (4, 9), (30, 2)])
def test_nothing_is_lost(outputs: int, inputs: int) -> None:
    weights = matrices(outputs, inputs)
    basis = shared_basis(weights)
    assert len(basis.values_R) == min(outputs, 5 * inputs)
    for weight_OI in weights:
        again_OI = basis.weight(basis.coefficients(weight_OI))
        assert again_OI.dtype == torch.float32
        assert (again_OI - weight_OI).norm() / weight_OI.norm() < 1e-5


def test_is_the_decomposition_of_all_side_by_side() -> None:
    weights = matrices()
    basis = shared_basis(weights)
    vectors_OO, values_O, coefficients_OX = torch.linalg.svd(torch.cat(weights, 1).double(), full_matrices=False)
    torch.testing.assert_close(basis.values_R, values_O)
    signs_R = (basis.vectors_OR * vectors_OO).sum(0)
    torch.testing.assert_close(signs_R.abs(), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(basis.vectors_OR * signs_R, vectors_OO)
    for weight_OI, expected_OI in zip(weights, coefficients_OX.split(4, dim=1), strict=True):
        torch.testing.assert_close(basis.coefficients(weight_OI).double() * signs_R[:, None], expected_OI)


def test_directions_that_no_matrix_has_are_left_out() -> None:
    low = [weight_OI[:, :1] @ weight_OI[:1] for weight_OI in matrices(count=2)]
    basis = shared_basis(low)
    assert len(basis.values_R) == 2
    torch.testing.assert_close(basis.weight(basis.coefficients(low[1])), low[1])
    nothing = shared_basis([torch.zeros(3, 2)] * 4)
    assert torch.equal(nothing.weight(nothing.coefficients(torch.zeros(3, 2))), torch.zeros(3, 2))


def test_half_precision_is_taken_and_infinities_are_not() -> None:
    half = [weight_OI.bfloat16() for weight_OI in matrices()]
    basis = shared_basis(half)
    torch.testing.assert_close(basis.weight(basis.coefficients(half[0])), half[0].float())
    with pytest.raises(NumericalFailure, match="infinite or NaN"):
        shared_basis([*half, torch.full((6, 4), torch.inf)])
