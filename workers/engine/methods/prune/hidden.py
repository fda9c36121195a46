"""Hidden: removes dimensions of the vector that all blocks read and add to; the model gets narrower throughout.

The coupled structure of embeddings, norms and every projection that LLM-Pruner (Ma et al. 2023, arXiv:2305.11627) calls
channel-wise. Unlike there, the norms' gains are raised by sqrt(D / K), K of D dimensions being kept: they divide by the
root mean square of what is left, and so give what they gave with zeros in the place of what went.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.errors import InvalidSpec
from workers.engine.removals.hidden import HiddenPruneParams, hidden_pruner

if TYPE_CHECKING:
    from collections.abc import Sequence


class HiddenParams(HiddenPruneParams):
    """Remove the lowest-scored hidden dimensions."""

    method: Literal["hidden"] = Field("hidden", description="Cut hidden dimensions out of the whole model.")
    sparsity: float = Field(
        ge=0,
        lt=1,
        description="Fraction of the hidden dimensions to remove, and so of the parameters of every linear layer.",
        examples=[0.125],
    )
    multiple_of: int = Field(
        1,
        ge=1,
        le=4096,
        description="Dimensions kept, where any go, are a multiple of this, the nearest. GPUs like 64 or 128.",
    )

    @property
    def target(self) -> float | None:
        return self.sparsity

    def kept(self, hidden_size: int) -> int:
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
