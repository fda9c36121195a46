"""Experts: drops whole experts of every mixture, or merges them into the others, with their rows of the router.

Lu et al. 2024 (Not All Experts are Equal, arXiv:2402.14800); scores decide which. Dropped, the others are as they were;
merged as by M-SMoE (Li et al. 2024, arXiv:2310.01334), see `removals/merging.py`. As many go of every block, as the
configs of transformers say one number for all, and a token is sent to as many as before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from workers.engine.contracts.params import AtMost
from workers.engine.removals.experts import ExpertPruneParams, expert_pruner

if TYPE_CHECKING:
    from collections.abc import Sequence


_MATCHING_BYTES = 20
"""Per pair of channels of two experts that are put in one order: their product in float32, and what scipy makes of
it."""


class ExpertsParams(ExpertPruneParams):
    """Drop the lowest-scored experts of every mixture."""

    number = "experts"
    method: Literal["experts"] = Field("experts", description="Drop whole experts of every mixture.")
    experts: int | None = Field(None, ge=1, le=4096, description="How many experts of each block stay.", examples=[6])
    sparsity: float | None = Field(
        None, ge=0, lt=1, description="Instead of `experts`: the fraction of them that goes, rounded.", examples=[0.25]
    )

    at_most: AtMost | None = Field(
        None,
        description="Instead of `experts`: the size the result must fit into, in `parameters` or `bytes`. As many stay "
        "as do. A token is sent to as many as before, so that `macs` and `decode_time` are refused.",
    )
    skip: bool = Field(
        False,
        description="Dynamic skipping: for each token the result leaves out experts whose weight is less than beta "
        "times the largest. Beta of each block is the median of the second weight over the first on the calibration "
        "text, after pruning, so that about half of the tokens skip one of two. Brings a modelling file.",
    )

    merge: bool = Field(
        False,
        description="Instead of dropping (M-SMoE): each expert that goes is averaged into the one that stays whose "
        "router logits are most like its own on the calibration text, in proportion to the tokens sent to each, after "
        "its channels are put in the order in which both differ least. Its row of the router goes either way.",
    )

    @model_validator(mode="after")
    def _one_target(self) -> ExpertsParams:
        if sum(given is not None for given in (self.experts, self.sparsity, self.at_most)) != 1:
            raise PydanticCustomError(
                "one_target", "give one of `experts`, how many stay, `sparsity` and `at_most`, the size to fit into"
            )
        return self

    @property
    def target(self) -> float | None:
        return self.sparsity

    @property
    def skips(self) -> bool:
        return self.skip

    @property
    def merges(self) -> bool:
        return self.merge

    def held_bytes(self, shape: tuple[int, int]) -> int:
        return _MATCHING_BYTES * max(shape) ** 2 if self.merge else 0

    def operations(self, shape: tuple[int, int], blocks: int) -> float:
        return float(blocks * min(shape) ** 3) if self.merge else 0.0

    def kept(self, experts: int) -> int:
        return self.experts if self.experts is not None else experts - round((self.sparsity or 0.0) * experts)


@expert_pruner(ExpertsParams, paper="arXiv:2402.14800")
def prune(scores: Sequence[float], kept: int, params: ExpertsParams) -> list[int]:
    """The experts that stay. On ties the lower index does."""
    order = sorted(range(len(scores)), key=lambda expert: (-scores[expert], expert))
    return sorted(order[:kept])
