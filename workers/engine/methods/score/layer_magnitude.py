"""Layer magnitude: a decoder block's importance is the sum of its weights' absolute values, or of their squares.

Kim et al. 2024 (Shortened LLaMA, arXiv:2402.02834, section 3.2). Norms count, biases too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.protected_ends import ProtectedEndsParams
from workers.engine.registry import unit_scorer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from workers.engine.contracts.facts import DenseUnits


class LayerMagnitudeParams(ProtectedEndsParams):
    """Size of each decoder block's weights; needs no data."""

    method: Literal["layer_magnitude"] = Field("layer_magnitude", description="Sum of a block's |weights|^power.")
    power: int = Field(1, ge=1, le=2, description="1 adds absolute values, 2 squares.")


def measure(block: DenseUnits, params: LayerMagnitudeParams) -> Mapping[str, Tensor]:
    """`layer` -> the sum over all tensors of the block."""
    import torch

    total = sum(float(tensor.double().abs().pow(params.power).sum()) for tensor in block.tensors.values())
    return {"layer": torch.tensor([total], dtype=torch.float64)}


@unit_scorer(LayerMagnitudeParams, paper="arXiv:2402.02834", units=("layer",), measure=measure)
def score(measured: Sequence[Mapping[str, Tensor]], params: LayerMagnitudeParams) -> list[Mapping[str, Tensor]]:
    """The sums."""
    return list(measured)
