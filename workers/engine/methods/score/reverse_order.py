"""Reverse order: the last decoder blocks go first (Lu et al. 2024, "Reassessing Layer Pruning", arXiv:2411.15558)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.params import MethodParams
from workers.engine.registry import unit_scorer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from workers.engine.contracts.facts import DenseUnits


class ReverseOrderParams(MethodParams):
    """Importance falls with a decoder block's index; needs no data."""

    method: Literal["reverse_order"] = Field("reverse_order", description="Drop the deepest blocks.")


def measure(block: DenseUnits, params: ReverseOrderParams) -> Mapping[str, Tensor]:
    """`layer` -> minus its index."""
    import torch

    return {"layer": torch.tensor([-block.block], dtype=torch.float64)}


@unit_scorer(ReverseOrderParams, paper="arXiv:2411.15558", units=("layer",), measure=measure)
def score(measured: Sequence[Mapping[str, Tensor]], params: ReverseOrderParams) -> list[Mapping[str, Tensor]]:
    """The order, from the front."""
    return list(measured)
