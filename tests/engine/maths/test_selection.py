"""Exact counts, ties and nesting, redone by hand and against a full stable sort."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from workers.engine.maths.selection import (
    all_finite,
    finite,
    lowest,
    lowest_of_groups,
    lowest_of_groups_at_once,
    lowest_unseen,
)


def by_sorting(score_RC: Tensor, count: int) -> Tensor:
    """The same by definition: the first `count` of a stable ascending sort."""
    order_RC = score_RC.argsort(dim=1, stable=True)
    return torch.zeros_like(score_RC, dtype=torch.bool).scatter_(1, order_RC[:, :count], True)


def test_by_hand() -> None:
    score_RC = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])
    # Two lowest: of 3 1 2 they are 1 and 2; of 0 5 4 they are 0 and 4.
    expected = torch.tensor([[False, True, True], [True, False, True]])
    assert torch.equal(lowest(score_RC, 2), expected)


def test_of_equal_scores_the_first_goes() -> None:
    score_RC = torch.tensor([[7.0, 7.0, 7.0, 7.0], [1.0, 7.0, 0.0, 7.0]])
    # Row 0: all tie, so columns 0 to 2. Row 1: 0 and 1, then column 1 of the two sevens.
    expected = torch.tensor([[True, True, True, False], [True, True, True, False]])
    assert torch.equal(lowest(score_RC, 3), expected)


@pytest.mark.parametrize("levels", [3, 1000])
@pytest.mark.parametrize("count", [0, 1, 7, 15, 16])
def test_equals_a_stable_sort(levels: int, count: int) -> None:
    # Few levels: nearly all scores tie. Many: hardly any.
    score_RC = torch.randint(levels, (50, 16), generator=torch.Generator().manual_seed(count)).float()
    assert torch.equal(lowest(score_RC, count), by_sorting(score_RC, count))
    if count:
        assert torch.equal(lowest_unseen(score_RC, count), by_sorting(score_RC, count))


@pytest.mark.parametrize(("n_kept", "of"), [(1, 2), (2, 4), (4, 8), (3, 4), (5, 8), (8, 32)])
def test_groups_equal_a_stable_sort(n_kept: int, of: int) -> None:
    score_GM = torch.randint(4, (200, of), generator=torch.Generator().manual_seed(of)).float()
    for select in (lowest_of_groups, lowest_of_groups_at_once):
        assert torch.equal(select(score_GM, of - n_kept), by_sorting(score_GM, of - n_kept))


def test_masks_nest_as_the_count_grows() -> None:
    score_RC = torch.randint(5, (20, 12), generator=torch.Generator().manual_seed(1)).float()
    smaller = lowest(score_RC, 0)
    for count in range(1, 13):
        larger = lowest(score_RC, count)
        assert not (smaller & ~larger).any()
        smaller = larger


def test_other_types_are_selected_the_same_way() -> None:
    score_RC = torch.randint(1000, (30, 100), generator=torch.Generator().manual_seed(3)).float()
    assert torch.equal(lowest(score_RC, 40), by_sorting(score_RC, 40))
    assert torch.equal(lowest(score_RC.double(), 40), by_sorting(score_RC, 40))  # torch's own selection


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_means_every_entry(dtype: torch.dtype) -> None:
    most = torch.finfo(dtype).max
    assert finite(torch.tensor([most, most, -1.0], dtype=dtype))  # the sum is not
    assert finite(torch.zeros(0, dtype=dtype))
    for broken in ([1.0, float("nan")], [float("inf"), float("-inf")], [float("-inf"), 1.0]):
        assert not finite(torch.tensor(broken, dtype=dtype))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_several_are_finite_if_each_is(value: float) -> None:
    tensors = [torch.ones(3), torch.full((2,), 3e38)]  # a sum that overflows is no proof
    assert all_finite(tensors)
    assert not all_finite([*tensors, torch.tensor([0.0, value])])
