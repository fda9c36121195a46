"""Expert frequency: an expert's importance is the share of tokens that are sent to it, the usual baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.params import MethodParams, Stat
from workers.engine.registry import unit_scorer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from workers.engine.contracts.facts import DenseUnits


class ExpertFrequencyParams(MethodParams):
    """How often each expert is chosen."""

    method: Literal["expert_frequency"] = Field(
        "expert_frequency", description="How many of the calibration tokens the router sends to the expert."
    )


def measure(block: DenseUnits, params: ExpertFrequencyParams) -> Mapping[str, Tensor]:
    """`expert` -> its share of all choices of the block."""
    if (experts := block.experts) is None:
        return {}
    return {"expert": experts.tokens_E / experts.tokens_E.sum()}


@unit_scorer(ExpertFrequencyParams, paper="arXiv:2402.14800", units=("expert",), needs=Stat.ROUTING, measure=measure)
def score(measured: Sequence[Mapping[str, Tensor]], params: ExpertFrequencyParams) -> list[Mapping[str, Tensor]]:
    """The shares."""
    return list(measured)
