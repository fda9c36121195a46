from __future__ import annotations

import pytest
import torch

from workers.engine.training.mixture import PATTERN, Mixture

SHARES = [[1.0], [1.0, 1.0], [0.6, 0.3, 0.1], [5.0, 2.0, 2.0, 1.0], [999.0, 1.0]]


def test_two_thirds_and_one_third_take_turns() -> None:
    domain_N, number_N = Mixture.of([2.0, 1.0]).places(0, 6)
    assert domain_N.tolist() == [0, 1, 0, 0, 1, 0]
    assert number_N.tolist() == [0, 0, 1, 2, 1, 3]


@pytest.mark.parametrize("shares", SHARES)
def test_after_any_number_of_windows_each_has_had_its_share(shares: list[float]) -> None:
    domain_N, _ = Mixture.of(shares).places(0, 2 * PATTERN)
    for number, share in enumerate(shares):
        had_N = (domain_N == number).cumsum(dim=0)
        due_N = torch.arange(1, 2 * PATTERN + 1) * share / sum(shares)
        assert (had_N - due_N).abs().max() <= 1.5


@pytest.mark.parametrize("shares", SHARES)
def test_windows_of_a_domain_are_numbered_one_after_another_wherever_it_begins(shares: list[float]) -> None:
    mixture, first, last = Mixture.of(shares), PATTERN - 70, 2 * PATTERN + 5
    domain_N, number_N = mixture.places(first, last)
    before, after = mixture.windows(first), mixture.windows(last)
    assert sum(after) == last
    for number in range(len(shares)):
        assert number_N[domain_N == number].tolist() == [*range(before[number], after[number])]
