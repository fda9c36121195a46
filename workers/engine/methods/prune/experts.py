"""Experts: drops whole experts of every mixture, with their rows of the router. The others are as they were.

Lu et al. 2024 (Not All Experts are Equal, arXiv:2402.14800); scores decide which. As many go of every block, as the
configs of transformers say one number for all, and a token is sent to as many as before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from workers.engine.removals.experts import ExpertPruneParams, expert_pruner

if TYPE_CHECKING:
    from collections.abc import Sequence


class ExpertsParams(ExpertPruneParams):
    """Drop the lowest-scored experts of every mixture."""

    method: Literal["experts"] = Field("experts", description="Drop whole experts of every mixture.")
    experts: int | None = Field(None, ge=1, le=4096, description="How many experts of each block stay.", examples=[6])
    sparsity: float | None = Field(
        None, ge=0, lt=1, description="Instead of `experts`: the fraction of them that goes, rounded.", examples=[0.25]
    )

    skip: bool = Field(
        False,
        description="Dynamic skipping: for each token the result leaves out experts whose weight is less than beta "
        "times the largest. Beta of each block is the median of the second weight over the first on the calibration "
        "text, after pruning, so that about half of the tokens skip one of two. Brings a modelling file.",
    )

    @model_validator(mode="after")
    def _one_target(self) -> ExpertsParams:
        if (self.experts is None) == (self.sparsity is None):
            raise PydanticCustomError("one_target", "give either `experts`, how many stay, or `sparsity`")
        return self

    @property
    def target(self) -> float | None:
        return self.sparsity

    @property
    def skips(self) -> bool:
        return self.skip

    def kept(self, experts: int) -> int:
        return self.experts if self.experts is not None else experts - round((self.sparsity or 0.0) * experts)


@expert_pruner(ExpertsParams, paper="arXiv:2402.14800")
def prune(scores: Sequence[float], kept: int, params: ExpertsParams) -> list[int]:
    """The experts that stay. On ties the lower index does."""
    order = sorted(range(len(scores)), key=lambda expert: (-scores[expert], expert))
    return sorted(order[:kept])
