"""Weights of the domains of a text, by how far the loss on each is above a reference (dynamic batch loading of Sheared
LLaMA, Xia et al. 2023, arXiv:2310.06694; DoReMi's update, Xie et al. 2023, arXiv:2305.10429)."""

from __future__ import annotations

import math
from collections.abc import Sequence

RATE = 1.0
SPREAD_EVENLY = 1e-4
"""Share of all weight that is spread evenly, so that no domain vanishes. Both numbers are of the authors' code."""


def reweighted(weights: Sequence[float], losses: Sequence[float], references: Sequence[float]) -> list[float]:
    """Weights after a look at the losses of the domains, nats a token: w exp(loss - reference), normalised.

    Weights are positive and sum to one, before and after. As in the authors' code a domain below its reference loses
    weight; their text takes the difference as zero there.
    """
    excess = [RATE * (loss - reference) for loss, reference in zip(losses, references, strict=True)]
    most = max(excess)
    grown = [weight * math.exp(over - most) for weight, over in zip(weights, excess, strict=True)]
    total = math.fsum(grown)
    return [(1 - SPREAD_EVENLY) * weight / total + SPREAD_EVENLY / len(grown) for weight in grown]
