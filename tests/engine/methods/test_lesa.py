"""LESA: what its networks learn. O, I = outputs, inputs, R = directions, N = rows of a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from tests.helpers.stacks import stack_of
from workers.engine.laws.random_layers import seeded
from workers.engine.maths.shared_basis import shared_basis
from workers.engine.methods.grow.lesa import LesaParams, grow

OUTPUTS, INPUTS, BLOCKS = 12, 8, 5


def drawn(seed: int) -> Tensor:
    return torch.randn(OUTPUTS, INPUTS, generator=seeded(seed))


def params(**changes: Any) -> LesaParams:
    return LesaParams.model_validate({"layers": 1, **changes})


LONGER = {"epochs": 60, "batch": 16, "norm_weight": 0.0, "rescale": True}


def test_blocks_that_are_alike_give_the_same_block_again() -> None:
    """Every row is then to be what both of its neighbours are."""
    weight_OI = drawn(0)
    grown = grow(stack_of([weight_OI] * BLOCKS, [3]), params(**LONGER, learning_rate=3e-3))
    (found_OI,) = grown.tensors
    assert (found_OI - weight_OI).norm() / weight_OI.norm() < 0.01
    assert grown.fit is not None
    assert grown.fit.error < 0.01
    assert grown.fit.error_of_mean < 1e-6


def test_blocks_on_a_line_are_better_than_nothing() -> None:
    """W_i = A + i B: the mean of two neighbours is exact, and a trained network beats zeros, whose error is 1."""
    a_OI, b_OI = drawn(0), drawn(1)
    grown = grow(stack_of([a_OI + i * b_OI for i in range(BLOCKS)], [3]), params(**LONGER))
    assert grown.fit is not None
    assert grown.fit.error < 0.5
    assert grown.fit.error_of_mean < 1e-6
    (found_OI,) = grown.tensors
    middle_OI = a_OI + 3.5 * b_OI
    assert (found_OI - middle_OI).norm() < middle_OI.norm()


@pytest.mark.parametrize("rescale", [False, True])
def test_the_term_of_the_norm_keeps_predictions_from_shrinking(rescale: bool) -> None:
    """Of random blocks nothing is to be learnt, so that the mean squared error alone is least near zero."""
    weights = [drawn(seed) for seed in range(BLOCKS)]
    norm = torch.stack(weights).norm() / BLOCKS**0.5
    found = {}
    for norm_weight in (0.0, 0.5):
        grown = grow(stack_of(weights, [1, 3]), params(epochs=20, batch=16, norm_weight=norm_weight, rescale=rescale))
        found[norm_weight] = float(torch.stack([*grown.tensors]).norm() / 2**0.5 / norm)
    assert abs(1 - found[0.5]) < abs(1 - found[0.0])


def by_the_notebook(weights: list[Tensor], given: LesaParams, seed: int, blocks: list[int]) -> list[Tensor]:
    """The authors' loop, with all coefficients in memory: rows of V of two neighbours side by side give the row between
    them."""
    basis = shared_basis(weights)
    all_BRI = torch.stack([basis.coefficients(weight_OI) for weight_OI in weights])
    around = torch.cat([torch.cat([all_BRI[i - 1], all_BRI[i + 1]], 1) for i in range(1, BLOCKS - 1)])
    between = torch.cat([all_BRI[i] for i in range(1, BLOCKS - 1)])
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Linear(2 * INPUTS, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, INPUTS)
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    order = seeded(seed)
    for _ in range(10):
        for part_N in torch.split(torch.randperm(len(around), generator=order), given.batch):
            found_NI = network(around[part_N])
            norm = (torch.norm(found_NI) - torch.norm(between[part_N])) ** 2
            loss = (1 - 5e-4) * mse_loss(found_NI, between[part_N]) + 5e-4 * norm
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return [basis.weight(network(torch.cat([all_BRI[i], all_BRI[i + 1]], 1))) for i in blocks]


def test_is_the_authors_loop() -> None:
    weights, given = [drawn(seed) for seed in range(BLOCKS)], params(batch=10)
    found = [*grow(stack_of(weights, [2, 3], seed=7), given).tensors]
    for found_OI, expected_OI in zip(found, by_the_notebook(weights, given, 7, [2, 3]), strict=True):
        torch.testing.assert_close(found_OI, expected_OI)
    (other_OI, _) = grow(stack_of(weights, [2, 3], seed=8), given).tensors
    assert not torch.allclose(other_OI, found[0])


@pytest.mark.parametrize(("vectors", "expected"), [("first", 0.0), ("left", 2.0), ("mean", 2.5)])
def test_norms_and_biases_are_not_predicted(vectors: str, expected: float) -> None:
    gains = [torch.full((4,), float(block)).bfloat16() for block in range(BLOCKS)]
    (found,) = grow(stack_of(gains, [2], is_matrix=False), params(vectors=vectors)).tensors
    assert found.tolist() == [expected] * 4
