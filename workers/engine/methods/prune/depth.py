"""Depth: drops whole decoder blocks. The model's shapes stay, its config names fewer layers.

Men et al. 2024 (ShortGPT, arXiv:2403.03853); scores decide which. All are taken on the dense model, then all blocks
that go do so at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from workers.engine.contracts.params import AtMost
from workers.engine.removals.blocks import BlockPruneParams, block_pruner

if TYPE_CHECKING:
    from collections.abc import Sequence


class DepthParams(BlockPruneParams):
    """Drop the lowest-scored decoder blocks."""

    number = "layers"
    method: Literal["depth"] = Field("depth", description="Drop whole decoder blocks.")
    layers: int | None = Field(None, ge=1, le=1024, description="How many decoder blocks go.", examples=[2])
    sparsity: float | None = Field(
        None, ge=0, lt=1, description="Instead of `layers`: the fraction of them that goes, rounded.", examples=[0.25]
    )
    at_most: AtMost | None = Field(
        None,
        description="Instead of `layers`: the size the result must fit into. As few go as that takes; where blocks "
        "differ in size, as few as is enough whichever they are.",
    )

    @model_validator(mode="after")
    def _one_target(self) -> DepthParams:
        if sum(given is not None for given in (self.layers, self.sparsity, self.at_most)) != 1:
            raise PydanticCustomError(
                "one_target", "give one of `layers`, how many blocks go, `sparsity` and `at_most`, the size to fit into"
            )
        return self

    @property
    def target(self) -> float | None:
        return self.sparsity

    def dropped(self, blocks: int) -> int:
        return self.layers if self.layers is not None else round((self.sparsity or 0.0) * blocks)


@block_pruner(DepthParams, paper="arXiv:2403.03853")
def prune(scores: Sequence[float], params: DepthParams) -> list[int]:
    """The blocks that stay. On ties the lower index goes."""
    order = sorted(range(len(scores)), key=lambda block: (scores[block], block))
    return sorted(order[params.dropped(len(scores)) :])
