"""Which experts of a mixture stay: losses of sets of experts, from products of their outputs.

Lu et al. 2024 (NAEE, arXiv:2402.14800) keep the set with which the mixture's output changes least. A token's change is
`sum_e (w'_e - w_e) y_e`, where w are the router's weights with all experts, w' with the kept ones and y_e an expert's
output. Its squared norm needs only the products of the outputs, so that experts run once, not once for every set.
T = tokens, E = experts, D = hidden size, K = experts that a token is sent to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Losses = Callable[[Sequence[Sequence[int]]], Sequence[float]]
"""Sets of experts that go, each ascending -> change of the mixture's output without each, >= 0."""
MOST_SETS = 2**14
"""Every set is tried where there are no more: all of up to 16 experts."""


def dropped_sets(experts: int, dropped: int) -> Iterator[tuple[int, ...]]:
    """Every set of `dropped` experts, in lexicographic order."""
    return combinations(range(experts), dropped)


def least_missed(experts: int, dropped: int, losses: Losses) -> tuple[list[int], float]:
    """(experts that go, loss without them), the set of least loss, the first in lexicographic order on ties.

    Where there are more than MOST_SETS, one expert goes at a time, the one with which the loss grows least (on ties of
    the lowest index): `dropped * experts` losses, and the set need not be the best.
    """
    if comb(experts, dropped) <= MOST_SETS:
        return _least(list(dropped_sets(experts, dropped)), losses)
    gone: list[int] = []
    loss = 0.0
    for _ in range(dropped):
        gone, loss = _least([sorted([*gone, one]) for one in range(experts) if one not in gone], losses)
    return gone, loss


def _least(sets: Sequence[Sequence[int]], losses: Losses) -> tuple[list[int], float]:
    found = losses(sets)
    best = min(range(len(sets)), key=lambda index: found[index])
    return list(sets[best]), found[best]


def products(outputs_TED: Tensor) -> Tensor:
    """Products of the outputs of a token's experts with one another, float32 [T, E, E]."""
    outputs_TED = outputs_TED.float()
    return outputs_TED @ outputs_TED.transpose(1, 2)


def squared_norms(products_TEE: Tensor, weights_TE: Tensor) -> Tensor:
    """Squared norm of the weighted sum of a token's outputs, float64 [T], >= 0, given their products."""
    weights_TE = weights_TE.to(products_TEE.dtype)
    of_sum_TE = (products_TEE @ weights_TE.unsqueeze(2)).squeeze(2)
    found: Tensor = (of_sum_TE * weights_TE).sum(dim=1).double().clamp(min=0)
    return found


def dense_weights(index_TK: Tensor, weight_TK: Tensor, experts: int) -> Tensor:
    """The router's weight of every expert [T, E], zero of those that a token is not sent to."""
    weights_TE = weight_TK.new_zeros(len(index_TK), experts)
    return weights_TE.scatter_add_(1, index_TK, weight_TK)


def second_over_first(weight_TK: Tensor) -> Tensor:
    """The second largest weight of a token over the largest, float32 [T], in [0, 1]. Their median is beta of dynamic
    skipping (NAEE, section 3.3)."""
    top_T2 = weight_TK.float().topk(2, dim=1).values
    return top_T2[:, 1] / top_T2[:, 0]
