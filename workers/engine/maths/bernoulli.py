"""Probabilities of units to stay, learnt from losses of models in which chance decided (Gao et al. 2024,
arXiv:2406.10576). K = models tried in a step, N = units.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

_HALVINGS = 60
"""Of the interval in which the shift lies: more than a float64 can tell apart."""
_LEAST = 1e-7
"""Added to both probabilities under the root, as in the authors' code."""


def projected(score_N: Tensor, budget: float) -> Tensor:
    """The nearest point of {0 <= s <= 1, sum s <= budget}, of the same type: clamp(s - v, 0, 1), where v >= 0 is 0 or
    makes the sum the budget. Found by bisection, in float64."""
    exact_N = score_N.double()
    if exact_N.clamp(0, 1).sum() <= budget:
        return score_N.clamp(0, 1)
    low, high = 0.0, float(exact_N.max())
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if (exact_N - middle).clamp(0, 1).sum() > budget:
            low = middle
        else:
            high = middle
    return (exact_N - high).clamp(0, 1).to(score_N.dtype)


def papers_gradient(loss_K: Tensor, baseline: float, drawn_KN: Tensor, score_N: Tensor) -> Tensor:
    """The authors' estimate of the gradient of the expected loss, [N]: its mean is K / (K - 1) sqrt(s (1 - s)) times
    the gradient, if the baseline is the expected loss; (K - 1 / T) / (K - 1) times that root and the gradient, if it is
    a running mean over T steps with this one. The root bounds steps near 0 and 1."""
    scale_N = ((score_N + _LEAST) * (1 - score_N + _LEAST)).sqrt()
    weight_K = (loss_K - baseline) / (len(loss_K) - 1)
    return weight_K.to(score_N.dtype) @ (drawn_KN.to(score_N.dtype) - score_N) / scale_N


def exact_gradient(loss_K: Tensor, drawn_KN: Tensor, score_N: Tensor) -> Tensor:
    """An unbiased estimate of the gradient of the expected loss, [N]: the score function's, where the baseline of each
    model is the mean loss of the others (Kool et al. 2019). 0 where s is 0 or 1 and nothing is left to chance."""
    variance_N = score_N * (1 - score_N)
    weight_K = (loss_K - loss_K.mean()) / (len(loss_K) - 1)
    found_N = weight_K.to(score_N.dtype) @ (drawn_KN.to(score_N.dtype) - score_N)
    return torch.where(variance_N > 0, found_N / variance_N.clamp(min=torch.finfo(score_N.dtype).tiny), 0)


def probabilities(importance_N: Tensor, mean: float) -> Tensor:
    """Probabilities in the order of an importance, as in the authors' `sigmap`: the sigmoid of its standard scores,
    shifted to a mean, and clamped to [0, 1]."""
    deviation = importance_N.std() if len(importance_N) > 1 else importance_N.new_zeros(())
    standard_N = (importance_N - importance_N.mean()) / deviation if deviation > 0 else torch.zeros_like(importance_N)
    sigmoid_N = standard_N.sigmoid()
    return (sigmoid_N + (mean - sigmoid_N.mean())).clamp(0, 1)
