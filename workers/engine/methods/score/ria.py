"""RIA: |W| relative to row and column, times a root of its input's norm (Zhang et al. 2024, openreview:Tr0lPx9woF).

The paper's other half, permuting channels so that N:M groups hold fewer important weights, is left out.
O = output features, I = input features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import MethodParams, Stat
from workers.engine.registry import scorer

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.contracts.facts import LinearStats


class RiaParams(MethodParams):
    """Importance is the weight's share of its row plus its share of its column, times a power of its input's norm."""

    method: Literal["ria"] = Field(
        "ria", description="Weight magnitude relative to its row and column; needs calibration data."
    )
    activation_power: float = Field(
        0.5, ge=0, le=1, description="Power of the input's norm, the paper's `a`; 0 looks at the weights alone."
    )


@scorer(RiaParams, group="matrix", needs=Stat.INPUT_SQ_MEAN, paper="https://openreview.net/forum?id=Tr0lPx9woF")
def score(weight_OI: Tensor, stats: LinearStats, params: RiaParams) -> Tensor:
    """Importance [O, I] >= 0, float32, comparable over the whole matrix, as in the released code.

    |W_ij| (1 / sum_k |W_kj| + 1 / sum_k |W_ik|) r_j ** a, where r is the root mean square of the input. The paper has
    the norm over all tokens, which is r times a constant of the matrix. A row or column of zeros scores 0; the
    released code divides 0 by 0 there.
    """
    import torch

    sq_mean_I = needed(stats.input_sq_mean_I, "Stat.INPUT_SQ_MEAN")
    magnitude_OI = weight_OI.float().abs()
    tiny = torch.finfo(torch.float32).tiny
    per_column_I = 1 / magnitude_OI.sum(dim=0).clamp_min(tiny)
    per_row_O1 = 1 / magnitude_OI.sum(dim=1, keepdim=True).clamp_min(tiny)
    return magnitude_OI * (per_column_I + per_row_O1) * sq_mean_I ** (params.activation_power / 2)
