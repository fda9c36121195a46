"""A mixture of domains: which domain each window of a training is of.

Domains take turns evenly: after any number of windows each has had its share of them to within a window or so. Whose
turn it is follows from the window's number alone, so a resumed training goes on as the killed one would have.
P = windows of the pattern, N = windows asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PATTERN = 10_000
"""Windows after which the turns repeat: shares are kept to 1/10,000."""


@dataclass(frozen=True)
class Mixture:
    """The turns of domains, by their numbers."""

    domain_P: Tensor
    """Whose turn each window of the pattern is."""
    rank_P: Tensor
    """How many windows of the same domain come before it in the pattern."""
    counts: tuple[int, ...]
    """Windows of each domain in the pattern."""

    @classmethod
    def of(cls, shares: Sequence[float]) -> Mixture:
        """Shares are positive and relative to one another."""
        total = sum(shares)
        # The k-th window of a domain is due at (k + 1/2) / share: Webster's method, as seats are given to parties.
        due = [(torch.arange(PATTERN, dtype=torch.float64) + 0.5) * (total / share) for share in shares]
        numbers = torch.arange(len(shares)).repeat_interleave(PATTERN)
        domain_P = numbers[torch.cat(due).argsort(stable=True)[:PATTERN]]
        rank_P = torch.empty_like(domain_P)
        counts = []
        for number in range(len(shares)):
            mine_P = domain_P == number
            counts.append(int(mine_P.sum()))
            rank_P[mine_P] = torch.arange(counts[-1])
        return cls(domain_P, rank_P, tuple(counts))

    def places(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """(domain, number among the windows of that domain) of the windows from `first` to before `last`, int64 [N]."""
        window_N = torch.arange(first, last)
        domain_N = self.domain_P[window_N % PATTERN]
        return domain_N, window_N // PATTERN * torch.tensor(self.counts)[domain_N] + self.rank_P[window_N % PATTERN]

    def windows(self, count: int) -> list[int]:
        """How many of the first `count` windows are of each domain."""
        begun = self.domain_P[: count % PATTERN].bincount(minlength=len(self.counts)).tolist()
        return [count // PATTERN * whole + rest for whole, rest in zip(self.counts, begun, strict=True)]
