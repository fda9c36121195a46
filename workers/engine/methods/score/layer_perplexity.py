"""Layer perplexity: a decoder block's importance is the perplexity of the calibration text without it.

Kim et al. 2024 (Shortened LLaMA, arXiv:2402.02834, section 3.2). Blocks are left out one at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import Stat
from workers.engine.contracts.protected_ends import ProtectedEndsParams
from workers.engine.registry import unit_scorer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from workers.engine.contracts.facts import DenseUnits


class LayerPerplexityParams(ProtectedEndsParams):
    """Perplexity of the calibration text without each decoder block."""

    method: Literal["layer_perplexity"] = Field("layer_perplexity", description="Perplexity without the block.")
    protect_first: int = Field(0, ge=0, le=1024, description="Blocks at the front that are never dropped.")
    protect_last: int = Field(0, ge=0, le=1024, description="Blocks at the back that are never dropped.")


def measure(block: DenseUnits, params: LayerPerplexityParams) -> Mapping[str, Tensor]:
    """`layer` -> perplexity of the model without the block."""
    import torch

    loss = needed(block.loss_without, "Stat.REMOVAL")
    return {"layer": torch.tensor([loss], dtype=torch.float64).exp()}


@unit_scorer(LayerPerplexityParams, paper="arXiv:2402.02834", units=("layer",), needs=Stat.REMOVAL, measure=measure)
def score(measured: Sequence[Mapping[str, Tensor]], params: LayerPerplexityParams) -> list[Mapping[str, Tensor]]:
    """The perplexities."""
    return list(measured)
