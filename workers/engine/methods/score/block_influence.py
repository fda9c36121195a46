"""Block influence: how much a block changes the direction of its input (ShortGPT, Men et al. 2024, arXiv:2403.03853).

1 minus the mean over all tokens of the cosine between the block's input and output, equation 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import MethodParams, Stat
from workers.engine.registry import unit_scorer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from workers.engine.contracts.facts import DenseUnits


class BlockInfluenceParams(MethodParams):
    """1 - the cosine between each decoder block's input and output."""

    method: Literal["block_influence"] = Field(
        "block_influence", description="1 - cosine of a block's input and output."
    )


def measure(block: DenseUnits, params: BlockInfluenceParams) -> Mapping[str, Tensor]:
    """`layer` -> influence in [0, 2]."""
    import torch

    return {"layer": torch.tensor([needed(block.change, "Stat.CHANGE")], dtype=torch.float64)}


@unit_scorer(BlockInfluenceParams, paper="arXiv:2403.03853", units=("layer",), needs=Stat.CHANGE, measure=measure)
def score(measured: Sequence[Mapping[str, Tensor]], params: BlockInfluenceParams) -> list[Mapping[str, Tensor]]:
    """The influence."""
    return list(measured)
