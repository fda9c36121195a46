"""Layer Taylor: a decoder block's importance is the sum of |w g| over its weights, g the gradient of the loss.

Kim et al. 2024 (Shortened LLaMA, arXiv:2402.02834, section 3.2), with one gradient over all calibration windows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.params import Stat
from workers.engine.contracts.protected_ends import ProtectedEndsParams
from workers.engine.registry import unit_scorer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from workers.engine.contracts.facts import DenseUnits


class LayerTaylorParams(ProtectedEndsParams):
    """How much the loss depends on each decoder block's weights, to first order."""

    method: Literal["layer_taylor"] = Field("layer_taylor", description="Sum of |weight * gradient| over a block.")


def measure(block: DenseUnits, params: LayerTaylorParams) -> Mapping[str, Tensor]:
    """`layer` -> the sum over all tensors of the block."""
    import torch

    (gradients,) = block.gradients
    total = sum(float((block.tensors[name].double() * gradient).abs().sum()) for name, gradient in gradients.items())
    return {"layer": torch.tensor([total], dtype=torch.float64)}


@unit_scorer(LayerTaylorParams, paper="arXiv:2402.02834", units=("layer",), needs=Stat.GRADIENT, measure=measure)
def score(measured: Sequence[Mapping[str, Tensor]], params: LayerTaylorParams) -> list[Mapping[str, Tensor]]:
    """The sums."""
    return list(measured)
