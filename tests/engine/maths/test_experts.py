"""Losses of sets of experts from products of outputs, against sums of the outputs themselves.

T = tokens, E = experts, D = hidden size, K = experts that a token is sent to.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import pytest
import torch

from workers.engine.laws.random_layers import seeded
from workers.engine.maths import experts
from workers.engine.maths.experts import dense_weights, least_missed, products, second_over_first, squared_norms


def test_the_norm_of_a_weighted_sum_follows_from_the_products() -> None:
    output_TED = torch.randn(7, 5, 12, generator=seeded(0))
    weight_TE = torch.randn(7, 5, generator=seeded(1))
    found_T = squared_norms(products(output_TED), weight_TE)
    summed_TD = (output_TED * weight_TE.unsqueeze(2)).sum(dim=1)
    torch.testing.assert_close(found_T, summed_TD.double().square().sum(dim=1), rtol=1e-5, atol=1e-6)
    assert found_T.dtype == torch.float64


def test_weights_lie_where_tokens_are_sent() -> None:
    weight_TE = dense_weights(torch.tensor([[2, 0], [1, 2]]), torch.tensor([[0.75, 0.25], [0.5, 0.5]]), 4)
    assert weight_TE.tolist() == [[0.25, 0, 0.75, 0], [0, 0.5, 0.5, 0]]


class TestLeastMissed:
    def test_tries_every_set_and_takes_the_first_of_the_best(self) -> None:
        tried: list[Sequence[Sequence[int]]] = []

        def losses(sets: Sequence[Sequence[int]]) -> list[float]:
            tried.append(sets)
            return [float(set(gone) not in ({1, 3}, {2, 4})) for gone in sets]

        assert least_missed(5, 2, losses) == ([1, 3], 0.0)
        assert [[*map(tuple, sets)] for sets in tried] == [[*combinations(range(5), 2)]]

    def test_experts_go_one_by_one_where_there_are_too_many_sets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(experts, "MOST_SETS", 9)
        tried: list[int] = []

        def losses(sets: Sequence[Sequence[int]]) -> list[float]:
            tried.append(len(sets))
            return [sum((5, 1, 4, 2, 3)[expert] for expert in gone) for gone in sets]

        assert least_missed(5, 2, losses) == ([1, 3], 3)
        assert tried == [5, 4]

    def test_of_64_experts_16_go_without_trying_them_all(self) -> None:
        assert least_missed(64, 16, lambda sets: [float(sum(gone)) for gone in sets])[0] == [*range(16)]

    def test_none_goes(self) -> None:
        assert least_missed(8, 0, lambda sets: [0.0 for _ in sets]) == ([], 0.0)


def test_second_over_first_of_weights_in_any_order() -> None:
    found_T = second_over_first(torch.tensor([[0.2, 0.8], [0.9, 0.1], [0.5, 0.5]]))
    torch.testing.assert_close(found_T, torch.tensor([0.25, 1 / 9, 1.0]))
