"""REAP: an expert's importance is the mean over its tokens of the router's weight times the norm of its output.

Lasby et al. 2025 (REAP the Experts, arXiv:2510.13999). The weight is the one that the block multiplies with: of a
softmax or sigmoids, renormalised over the chosen experts or not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.params import MethodParams, Stat
from workers.engine.registry import unit_scorer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from workers.engine.contracts.facts import DenseUnits

_QUANTILE, _SHARE_OF_LARGEST, _FIRST_BLOCKS = 0.995, 0.1, 0.75


class ReapParams(MethodParams):
    """Weighted size of what each expert adds for its tokens."""

    method: Literal["reap"] = Field("reap", description="Mean of the router's weight times the output's norm.")
    keep_super_experts: bool = Field(
        False,
        description="Never drop an expert of the first three quarters of the blocks whose largest output is beyond the "
        "99.5th percentile of all experts' and a tenth of the largest: a few hold up the massive activations that "
        "attention depends on.",
    )


def measure(block: DenseUnits, params: ReapParams) -> Mapping[str, Tensor]:
    """`expert` -> the mean, `peak` -> the largest absolute output."""
    if (experts := block.experts) is None:
        return {}
    return {"expert": experts.weighted_norm_E, "peak": experts.peak_E}


@unit_scorer(ReapParams, paper="arXiv:2510.13999", units=("expert",), needs=Stat.ROUTING, measure=measure)
def score(measured: Sequence[Mapping[str, Tensor]], params: ReapParams) -> list[Mapping[str, Tensor]]:
    """The means; infinite for experts that must stay."""
    import torch

    found: list[Mapping[str, Tensor]] = [{"expert": block["expert"]} if block else {} for block in measured]
    if not params.keep_super_experts:
        return found
    peaks = torch.cat([block["peak"] for block in measured if block])
    bound = max(float(torch.quantile(peaks, _QUANTILE)), float(peaks.max()) * _SHARE_OF_LARGEST)
    for number, block in enumerate(measured[: int(len(measured) * _FIRST_BLOCKS)]):
        if block:
            found[number] = {"expert": block["expert"].masked_fill(block["peak"] > bound, torch.inf)}
    return found
