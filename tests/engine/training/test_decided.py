"""Which units go: exact counts, budgets and ties by hand."""

from __future__ import annotations

import pytest
import torch

from workers.engine.architectures.architecture import Family
from workers.engine.training.decided import lowest_of_all, lowest_of_each, rows_of, scores_of


def family(block: int, kind: str, units: int, size: int = 1) -> Family:
    return Family(block, kind, units, (), size, 0, shared=kind == "hidden", is_block=kind == "layer")


FAMILIES = [
    family(0, "head", 2, 40), family(0, "channel", 4, 3), family(0, "hidden", 3), family(0, "layer", 1),
    family(1, "head", 2, 40), family(1, "channel", 4, 3), family(1, "hidden", 3), family(1, "layer", 1),
]  # fmt: skip


def test_of_each_row_as_many_as_asked_for() -> None:
    importance = {(0, "head"): torch.tensor([2.0, 1.0]), (0, "channel"): torch.tensor([1.0, 1.0, 1.0, 0.5])}
    closed = lowest_of_each(importance, {(0, "channel"): 2})
    assert closed[0, "head"].tolist() == [False, False]
    assert closed[0, "channel"].tolist() == [True, False, False, True]


@pytest.mark.parametrize("budget", [0, 1, 2, 19, 40, 47, 58, 80, 90, 103])
def test_of_all_what_was_asked_for_to_half_a_channel(budget: int) -> None:
    generator = torch.Generator().manual_seed(budget)
    rows = {row: found[0] for row, found in rows_of(FAMILIES).items() if row[1] in ("head", "channel")}
    importance = {row: torch.randn(found.units, generator=generator) for row, found in rows.items()}
    closed = lowest_of_all(importance, {row: found.unit_parameters for row, found in rows.items()}, budget, {})
    gone = sum(rows[row].unit_parameters * int(closed_N.sum()) for row, closed_N in closed.items())
    # Two heads and six channels may go, 98 parameters: one of each row stays.
    assert abs(gone - min(budget, 98)) <= 1.5
    assert all(not closed_N.all() for closed_N in closed.values())


def test_of_all_the_lowest_go_wherever_they_are() -> None:
    importance = {(0, "channel"): torch.tensor([4.0, 1.0, 3.0]), (1, "channel"): torch.tensor([5.0, 2.0, 6.0])}
    closed = lowest_of_all(importance, dict.fromkeys(importance, 3), 9, {})
    assert closed[0, "channel"].tolist() == [False, True, True]
    assert closed[1, "channel"].tolist() == [False, True, False]


def test_of_equal_units_all_rows_lose_alike() -> None:
    importance = {(block, "channel"): torch.full((8,), 4.6) for block in range(3)}
    closed = lowest_of_all(importance, dict.fromkeys(importance, 1), 12, {})
    assert [int(closed_N.sum()) for closed_N in closed.values()] == [4, 4, 4]


def test_what_must_stay_does() -> None:
    importance = {(0, "channel"): torch.tensor([1.0, 2.0, 3.0]), (1, "channel"): torch.tensor([4.0, 5.0, 6.0])}
    closed = lowest_of_all(importance, dict.fromkeys(importance, 1), 3, {(0, "channel"): 2})
    assert closed[0, "channel"].tolist() == [True, False, False]
    assert closed[1, "channel"].tolist() == [True, True, False]


def test_scores_are_below_zero_where_units_go_and_in_the_order_of_importance() -> None:
    importance = {
        (0, "channel"): torch.tensor([0.4, 0.1, 0.3, 0.2]),
        (None, "hidden"): torch.tensor([3.0, 2.0, 1.0]),
        (None, "layer"): torch.tensor([7.0, -9.0]),
    }
    closed = {
        (0, "channel"): torch.tensor([False, True, False, True]),
        (None, "hidden"): torch.tensor([False, False, True]),
        (None, "layer"): torch.tensor([False, True]),
    }
    scores = scores_of(FAMILIES, importance, closed)
    assert scores[0] == {"head": [1, 1], "channel": [3, -4, 2, -3], "hidden": [2, 1, -3], "layer": [1]}
    assert scores[1] == {"head": [1, 1], "channel": [1, 1, 1, 1], "hidden": [2, 1, -3], "layer": [-2]}
