"""Left singular vectors that several matrices of one shape share: W_i = U S V_i, for all i, without loss.

U and S are those of [W_0 | W_1 | ...]. They come from the eigenvectors of the sum of W_i W_i^T, so that one W_i is in
memory at a time. That squares singular values: it is done in float64, and directions below 1e-6 of the largest are left
out. O, I = rows and columns of a matrix, R = directions left.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from workers.engine.errors import NumericalFailure
from workers.engine.maths.selection import finite

if TYPE_CHECKING:
    from torch import Tensor

LEAST = 1e-6
"""Singular values below this share of the largest count as zero."""


@dataclass(frozen=True)
class SharedBasis:
    """U and S, float64."""

    vectors_OR: Tensor
    values_R: Tensor
    """Descending."""

    def coefficients(self, weight_OI: Tensor) -> Tensor:
        """V of one matrix, float32 [R, I]."""
        return ((self.vectors_OR.T @ weight_OI.double()) / self.values_R[:, None]).float()

    def weight(self, coefficients_RI: Tensor) -> Tensor:
        """The matrix with these coefficients, float32 [O, I]."""
        return ((self.vectors_OR * self.values_R) @ coefficients_RI.double()).float()


def shared_basis(weights: Iterable[Tensor]) -> SharedBasis:
    """The basis of matrices [O, I], which are read one by one. Raises NumericalFailure."""
    gram_OO: Tensor | None = None
    for weight_OI in weights:
        exact_OI = weight_OI.double()
        if gram_OO is None:
            gram_OO = exact_OI @ exact_OI.T
        else:
            gram_OO.addmm_(exact_OI, exact_OI.T)
        del exact_OI
    assert gram_OO is not None  # a model has blocks
    if not finite(gram_OO):
        raise NumericalFailure(
            "products of weights are infinite or NaN", "check the weights of the dense model", field="/model/id"
        )
    squares_O, vectors_OO = torch.linalg.eigh(gram_OO)
    del gram_OO
    values_O = squares_O.clamp(min=0).sqrt().flip(0)
    count = int((values_O > LEAST * values_O[0]).sum())
    return SharedBasis(vectors_OO.flip(1)[:, :count].contiguous(), values_O[:count])
