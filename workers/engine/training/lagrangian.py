"""Constraints on gates by multipliers that are trained to the contrary (Xia et al. 2023, arXiv:2310.06694; Guo et al.
2023, arXiv:2310.05015): for each constraint the mean over its gaps of l1 gap + l2 gap^2.

A gap is the share of units that is expected to be closed less the share that is to be. The multipliers ascend, so that
they grow while there is a gap: l1 against it, l2, which never falls, against its square.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from workers.engine.maths import hard_concrete

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.contracts.training import Target
    from workers.engine.training.gates import Gates


class Lagrangian:
    """The constraints of a target: where it says how many units go, one a kind, with a gap for each row; else one."""

    def __init__(self, gates: Gates, target: Target, prunable: int) -> None:
        """`prunable`: parameters of which `target.share` is to go. Multipliers begin at 0."""
        self.gates, self.target, self.prunable = gates, target, prunable
        kinds = ["all"] if target.going is None else list(dict.fromkeys(kind for _, kind in gates.alphas))
        device = next(iter(gates.alphas.values())).device
        self.multipliers = {kind: nn.Parameter(torch.zeros(2, device=device)) for kind in kinds}
        """Kind -> (l1, l2)."""

    def penalty(self, ramp: float) -> Tensor:
        """The term of the loss, while the share `ramp` of the target is asked for."""
        terms = []
        for kind, gap_R in self.gaps(ramp).items():
            linear, square = self.multipliers[kind].unbind()
            terms.append((linear * gap_R + square * gap_R.square()).mean())
        return torch.stack(terms).sum()

    def gaps(self, ramp: float) -> dict[str, Tensor]:
        """Kind -> the gap of each of its rows [R]."""
        if self.target.going is None:
            return {"all": (self.expected_share() - ramp * self.target.share)[None]}
        going = self.target.going
        found: dict[str, list[Tensor]] = {kind: [] for kind in self.multipliers}
        for row, alpha_N in self.gates.alphas.items():
            found[row[1]].append(hard_concrete.chance_of_zero(alpha_N).mean() - ramp * going[row] / len(alpha_N))
        return {kind: torch.stack(gaps) for kind, gaps in found.items()}

    def expected_share(self) -> Tensor:
        """Share of the prunable parameters that is expected to be closed, where heads and channels are gated."""
        closed = [
            hard_concrete.chance_of_zero(alpha_N).sum() * self.gates.rows[row][0].unit_parameters
            for row, alpha_N in self.gates.alphas.items()
        ]
        return torch.stack(closed).sum() / self.prunable
