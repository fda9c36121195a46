"""Channels of two MLPs that stand for one another. C = channels, D = hidden size."""

from __future__ import annotations

import itertools

import torch

from workers.engine.maths.alignment import matched_channels


def test_the_order_of_a_permuted_copy_is_found() -> None:
    gate_CD, down_CD = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(0))
    order_C = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    found_C = matched_channels([gate_CD, down_CD], [gate_CD[order_C], down_CD[order_C]])
    assert torch.equal(order_C[found_C], torch.arange(12))


def test_no_other_order_is_nearer() -> None:
    mine_CD, other_CD = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(2))

    def distance(order: list[int]) -> float:
        return float((mine_CD - other_CD[order]).square().sum())

    best = min(distance(list(order)) for order in itertools.permutations(range(5)))
    assert abs(distance(matched_channels([mine_CD], [other_CD]).tolist()) - best) < 1e-5
