"""ATP: sparsity grows by one constant step a block, found by trial prunings (Huang et al. 2025, arXiv:2502.14770)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import MethodParams, Stat
from workers.engine.maths.spreading import MOST, by_block, shifted_blocks
from workers.engine.registry import allocator

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from workers.engine.contracts.facts import AllocationFacts

_FIRST_INTERVALS = 5
_REFINEMENTS = 3


class AtpParams(MethodParams):
    """An arithmetic progression of sparsities over the blocks."""

    method: Literal["atp"] = Field("atp", description="Sparsity that grows evenly with depth.")
    beta: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Sparsity a block gets more than the one before, cut to what is possible at the target. Default: "
        "the step with the lowest loss on calibration text among up to 12 trial prunings.",
        examples=[0.01],
    )

    @property
    def waives(self) -> Stat:
        return Stat.NONE if self.beta is None else Stat.LOSS

    def trials(self, streams: int) -> float:
        return 12 if self.beta is None else 0


@allocator(AtpParams, paper="arXiv:2502.14770", needs=Stat.LOSS)
def allocate(facts: AllocationFacts, sparsity: float, params: AtpParams) -> Mapping[str, float]:
    """Sparsity of block i: sparsity - beta (blocks - 1) / 2 + beta i, from i = 0; the first blocks keep the most.

    Departures: beta is sought by a coarse grid and three halvings around its best point, not on a grid of 0.002; the
    last block keeps 1 %; the progression is shifted as a whole where blocks differ in size. Since beta depends on the
    target when it is sought, the sparsity of a block need not grow with the target.
    """
    blocks = by_block(facts.layers)

    def progression(beta: float) -> dict[str, float]:
        return shifted_blocks(blocks, [beta * i for i in range(len(blocks))], sparsity)

    largest = 2 * min(sparsity, max(0.0, MOST - sparsity)) / max(1, len(blocks) - 1)
    if params.beta is not None:
        return progression(min(params.beta, largest))
    loss = needed(facts.loss, "Stat.LOSS")
    return progression(_lowest(lambda beta: loss(progression(beta)), largest))


def _lowest(loss: Callable[[float], float], largest: float) -> float:
    """Argument in [0, largest] of the lowest loss, to 1/40 of the range if it has one minimum; the smaller of equals.

    Tries both ends, so the result is never worse than uniform. At most 12 trials; a loss that is not finite never wins.
    """
    if largest == 0:
        return 0.0
    tried: dict[float, float] = {}
    step = largest / _FIRST_INTERVALS
    candidates = [step * i for i in range(_FIRST_INTERVALS + 1)]
    for _ in range(1 + _REFINEMENTS):
        for beta in candidates:
            found = loss(beta)
            tried[beta] = found if math.isfinite(found) else math.inf
        best = min(sorted(tried), key=tried.__getitem__)
        step /= 2
        candidates = [beta for beta in (best - step, best + step) if 0 <= beta <= largest]
    return best
