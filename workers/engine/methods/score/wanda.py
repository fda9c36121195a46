"""Wanda: importance is |W| times the norm of its input (Sun et al. 2023, arXiv:2306.11695, eq. 1).

O = output features, I = input features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.params import MethodParams, Stat
from workers.engine.registry import scorer

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.contracts.facts import LinearStats


class WandaParams(MethodParams):
    """Importance is |W| times the root mean square of the input it multiplies."""

    method: Literal["wanda"] = Field("wanda", description="Weight magnitude times input norm; needs calibration data.")


@scorer(WandaParams, group="row", needs=Stat.INPUT_SQ_MEAN, paper="arXiv:2306.11695")
def score(weight_OI: Tensor, stats: LinearStats, params: WandaParams) -> Tensor:
    """Importance [O, I] >= 0, float32, comparable within a row only."""
    return stats.weighted(weight_OI)
