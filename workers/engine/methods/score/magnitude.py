"""Magnitude: importance is |W| (Han et al. 2015, arXiv:1506.02626). Needs no data.

O = output features, I = input features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.params import MethodParams
from workers.engine.registry import scorer

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.contracts.facts import LinearStats


class MagnitudeParams(MethodParams):
    """Importance is the weight's absolute value."""

    method: Literal["magnitude"] = Field("magnitude", description="Weight magnitude; needs no calibration data.")


@scorer(MagnitudeParams, group="matrix", paper="arXiv:1506.02626")
def score(weight_OI: Tensor, stats: LinearStats, params: MagnitudeParams) -> Tensor:
    """Importance [O, I] >= 0, float32, comparable over the whole matrix."""
    return weight_OI.float().abs()
