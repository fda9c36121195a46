"""Shape: cuts the model to a hidden size, heads, layers and channels given by hand, exactly.

The structured target of Sheared LLaMA (Xia et al. 2023, arXiv:2310.06694), whose 1.3 B model is LLaMA-2-7B cut to
hidden size 2048, 16 heads, 24 layers and 5504 channels. There a training decides what goes; here the scores do,
wherever they come from. Unlike there, the norms' gains are raised as `hidden` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from workers.engine.removals.shape import FIELDS, ShapePruneParams, shape_pruner
from workers.engine.removals.widths import best_units

if TYPE_CHECKING:
    from collections.abc import Sequence


class ShapeParams(ShapePruneParams):
    """Keep the highest-scored units of every kind that is given, as many as are given."""

    method: Literal["shape"] = Field("shape", description="Cut the model to a shape given by hand.")
    hidden: int | None = Field(
        None, ge=1, le=1_048_576, description="Hidden dimensions that stay; null keeps all.", examples=[2048]
    )
    heads: int | None = Field(
        None,
        ge=1,
        le=65_536,
        description="Query heads that every block keeps, with the key/value heads that they share: a multiple of the "
        "query heads to one of those. null keeps all.",
        examples=[16],
    )
    layers: int | None = Field(
        None, ge=1, le=4096, description="Decoder blocks that stay; null keeps all.", examples=[24]
    )
    channels: int | None = Field(
        None, ge=1, le=1_048_576, description="MLP channels that every block keeps; null keeps all.", examples=[5504]
    )

    @model_validator(mode="after")
    def _a_size(self) -> ShapeParams:
        if not self.sizes:
            raise PydanticCustomError(
                "no_size", "give at least one of {names}", {"names": ", ".join(f"`{name}`" for name in FIELDS.values())}
            )
        return self

    @property
    def target(self) -> float | None:
        return None


@shape_pruner(ShapeParams, paper="arXiv:2310.06694")
def prune(scores: Sequence[float], count: int, params: ShapeParams) -> list[int]:
    """The units that stay, ascending. On ties the higher index stays."""
    return best_units(scores, count)
