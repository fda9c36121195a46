"""Wanda: importance is |W| times the norm of its input (Sun et al. 2023, arXiv:2306.11695, eq. 1).

O = output features, I = input features.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.params import NORMS, MethodParams, Norm, Stat
from workers.engine.registry import scorer

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.contracts.facts import LinearStats


class WandaParams(MethodParams):
    """Importance is |W| times the norm of the input it multiplies."""

    method: Literal["wanda"] = Field("wanda", description="Weight magnitude times input norm; needs calibration data.")
    norm: Norm = Field(
        "l2",
        description="Of each input over the calibration tokens: the paper's is `l2`, and it tried `l1` and `max` too.",
    )

    @property
    def waives(self) -> Stat:
        return _NEEDS & ~NORMS[self.norm]


_NEEDS = functools.reduce(Stat.__or__, NORMS.values())


@scorer(WandaParams, group="row", needs=_NEEDS, paper="arXiv:2306.11695")
def score(weight_OI: Tensor, stats: LinearStats, params: WandaParams) -> Tensor:
    """Importance [O, I] >= 0, float32, comparable within a row only."""
    return stats.weighted(weight_OI, params.norm)
