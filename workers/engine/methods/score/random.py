"""Random: importance drawn at random, the baseline of every score (as in LLM-Pruner, arXiv:2305.11627, table 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.params import MethodParams
from workers.engine.registry import unit_scorer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from workers.engine.contracts.facts import DenseUnits


class RandomParams(MethodParams):
    """Importance is drawn at random."""

    method: Literal["random"] = Field("random", description="Random importance: a floor to compare with.")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Seed of the draw.")


def measure(block: DenseUnits, params: RandomParams) -> Mapping[str, Tensor]:
    """Unit kind -> uniform random numbers."""
    import torch

    generator = torch.Generator().manual_seed(params.seed * 65_537 + block.block)
    sizes = {family.kind: family.units for family in block.families} | {"layer": 1}
    return {kind: torch.rand(units, generator=generator, dtype=torch.float64) for kind, units in sizes.items()}


@unit_scorer(
    RandomParams,
    paper="arXiv:2305.11627",
    units=("head", "channel", "hidden", "layer", "expert", "expert_channel"),
    measure=measure,
)
def score(measured: Sequence[Mapping[str, Tensor]], params: RandomParams) -> list[Mapping[str, Tensor]]:
    """The draws."""
    return list(measured)
