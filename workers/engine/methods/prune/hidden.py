"""Hidden: removes dimensions of the vector that all blocks read and add to; the model gets narrower throughout.

The coupled structure of embeddings, norms and every projection that LLM-Pruner (Ma et al. 2023, arXiv:2305.11627) calls
channel-wise. Unlike there, the norms' gains are raised by sqrt(D / K), K of D dimensions being kept: they divide by the
root mean square of what is left, and so give what they gave with zeros in the place of what went.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from workers.engine.contracts.params import AtMost
from workers.engine.errors import InvalidSpec
from workers.engine.removals.hidden import HiddenPruneParams, hidden_pruner

if TYPE_CHECKING:
    from collections.abc import Sequence


class HiddenParams(HiddenPruneParams):
    """Remove the lowest-scored hidden dimensions."""

    number = "dimensions"
    method: Literal["hidden"] = Field("hidden", description="Cut hidden dimensions out of the whole model.")
    sparsity: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Fraction of the hidden dimensions to remove, and so of the parameters of every linear layer.",
        examples=[0.125],
    )
    dimensions: int | None = Field(
        None, ge=1, le=1_048_576, description="Instead of `sparsity`: how many hidden dimensions stay.", examples=[3584]
    )
    at_most: AtMost | None = Field(
        None,
        description="Instead of `sparsity`: the size the result must fit into. As many dimensions stay as do, a "
        "multiple of `multiple_of`.",
    )
    multiple_of: int = Field(
        1,
        ge=1,
        le=4096,
        description="Dimensions kept, where any go, are a multiple of this, the nearest. GPUs like 64 or 128.",
    )

    @model_validator(mode="after")
    def _one_target(self) -> HiddenParams:
        if sum(given is not None for given in (self.sparsity, self.dimensions, self.at_most)) != 1:
            raise PydanticCustomError(
                "one_target", "give one of `sparsity`, `dimensions`, how many stay, and `at_most`, the size to fit into"
            )
        return self

    @property
    def target(self) -> float | None:
        return self.sparsity

    @property
    def multiple(self) -> int:
        return self.multiple_of

    def kept(self, hidden_size: int) -> int:
        if self.dimensions is not None:
            if self.dimensions % self.multiple_of and self.dimensions != hidden_size:
                raise InvalidSpec(
                    f"{self.dimensions} hidden dimensions are to stay, no multiple of {self.multiple_of}",
                    "leave multiple_of out, or give a multiple of it",
                    field="/prune/dimensions",
                )
            if self.dimensions > hidden_size:
                raise InvalidSpec(
                    f"{self.dimensions} hidden dimensions are to stay, and there are {hidden_size}: none is added",
                    f"keep {hidden_size} or fewer",
                    field="/prune/dimensions",
                )
            return self.dimensions
        if not self.sparsity:
            return hidden_size
        kept = round(hidden_size * (1 - self.sparsity) / self.multiple_of) * self.multiple_of
        if not 0 < kept <= hidden_size:
            raise InvalidSpec(
                f"of {hidden_size} hidden dimensions {kept}, the nearest multiple of {self.multiple_of}, cannot stay",
                "lower multiple_of, or the sparsity",
                field="/prune/multiple_of",
            )
        return kept


@hidden_pruner(HiddenParams, paper="arXiv:2305.11627")
def prune(scores: Sequence[float], params: HiddenParams) -> list[int]:
    """The dimensions that stay. On ties the higher index stays."""
    order = sorted(range(len(scores)), key=lambda dimension: (scores[dimension], dimension))
    return sorted(order[len(scores) - params.kept(len(scores)) :])
