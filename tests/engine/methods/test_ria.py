"""RIA by hand, and what it ignores and what not. O = outputs, I = inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from workers.engine.contracts.facts import LinearStats
from workers.engine.methods.score.ria import RiaParams, score


def scored(weight_OI: Tensor, sq_mean_I: Tensor, power: float = 0.5) -> Tensor:
    return score(weight_OI, LinearStats(tokens=1, input_sq_mean_I=sq_mean_I), RiaParams(activation_power=power))


@pytest.mark.parametrize(
    ("power", "expected"),
    # Column sums 2, 5; row sums 4, 3. Shares of column plus row:
    #   1/2 + 1/4 = 0.75   3/5 + 3/4 = 1.35
    #   1/2 + 1/3 = 5/6    2/5 + 2/3 = 16/15
    # Mean squares 16 and 1, so roots 4 and 1: column 0 is times 4 ** power.
    [
        (0.0, [[0.75, 1.35], [5 / 6, 16 / 15]]),
        (0.5, [[1.5, 1.35], [5 / 3, 16 / 15]]),
        (1.0, [[3.0, 1.35], [10 / 3, 16 / 15]]),
    ],
)
def test_by_hand(power: float, expected: list[list[float]]) -> None:
    weight_OI = torch.tensor([[1.0, -3.0], [-1.0, 2.0]])
    torch.testing.assert_close(scored(weight_OI, torch.tensor([16.0, 1.0]), power), torch.tensor(expected))


def test_ignores_the_scale_of_the_matrix_and_of_all_inputs() -> None:
    generator = torch.Generator().manual_seed(0)
    weight_OI, sq_mean_I = torch.randn(7, 9, generator=generator), torch.rand(9, generator=generator)
    base_OI = scored(weight_OI, sq_mean_I)
    torch.testing.assert_close(scored(weight_OI * 1e3, sq_mean_I), base_OI)
    # Norms 4 times as large: every score 4 ** 0.5 = 2 times as large, so in the same order.
    torch.testing.assert_close(scored(weight_OI, sq_mean_I * 16), base_OI * 2)


def test_transposing_the_weights_transposes_the_shares() -> None:
    weight_OI = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    there, back = scored(weight_OI, torch.ones(8), 0.0), scored(weight_OI.T, torch.ones(5), 0.0)
    torch.testing.assert_close(there, back.T)


def test_spares_a_column_of_small_weights() -> None:
    weight_OI = torch.tensor([[0.3, 3.0, 1.0], [0.1, 1.0, 3.0]])
    # Magnitude drops column 0 first, and with it an input. Column sums 0.4, 4, 4; row sums 4.3, 4.1. The lowest are
    # 0.1/0.4 + 0.1/4.1 = 0.27 and 1/4 + 1/4.3 = 0.48; 0.3 scores 0.3/0.4 + 0.3/4.3 = 0.82.
    order = scored(weight_OI, torch.ones(3), 0.0).flatten().argsort().tolist()
    assert order[:2] == [3, 2]
    assert weight_OI.flatten().argsort().tolist()[:2] == [3, 0]


def test_a_row_or_column_of_zeros_scores_zero() -> None:
    weight_OI = torch.tensor([[0.0, 0.0, 0.0], [0.0, 2.0, 1.0]])
    score_OI = scored(weight_OI, torch.tensor([1.0, 0.0, 4.0]))
    # Only the last entry is left: 1/1 + 1/3, times 2 ** 0.5. The middle one reads an input that is always 0.
    torch.testing.assert_close(score_OI, torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, (4 / 3) * 2**0.5]]))
