"""Whose turn each window of a training is, where the weights of the domains follow the losses on them.

N = windows asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workers.engine.maths.domain_weights import reweighted


@dataclass
class Turns:
    """Dynamic batch loading. All of its state is in its fields, which JSON gives back as they were."""

    references: list[float]
    """Loss of each domain, nats a token, above which it gains weight."""
    weights: list[float]
    """Of the domains; they sum to one."""
    due: list[float] = field(default_factory=list)
    """How many windows of each domain its weights so far have promised beyond those taken."""
    taken: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.due = self.due or [0.0] * len(self.weights)
        self.taken = self.taken or [0] * len(self.weights)

    def look(self, losses: Sequence[float]) -> None:
        """Change the weights after the losses of the domains were measured."""
        self.weights = reweighted(self.weights, losses, self.references)

    def take(self, count: int) -> tuple[Tensor, Tensor]:
        """(domain, number among the windows of that domain) of the next windows, int64 [N]. The domain to which most is
        due has its turn, so each has its share to within a window or so."""
        places = []
        for _ in range(count):
            self.due = [due + weight for due, weight in zip(self.due, self.weights, strict=True)]
            domain = self.due.index(max(self.due))
            places.append((domain, self.taken[domain]))
            self.due[domain] -= 1
            self.taken[domain] += 1
        domain_N, number_N = torch.tensor(places, dtype=torch.int64).unbind(dim=1)
        return domain_N, number_N
