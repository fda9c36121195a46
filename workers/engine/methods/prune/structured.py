"""Structured: removes whole heads and MLP channels, so that the model is smaller and faster in any runtime.

Coupled slices go together as in LLM-Pruner (Ma et al. 2023, arXiv:2305.11627). What the layers that read the units lose
can be made up for by least squares (the optimal brain surgeon's update of all remaining inputs at once).
O = outputs, I = inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import AtMost, Stat
from workers.engine.removals.heads_channels import unit_pruner
from workers.engine.removals.widths import UnitPruneParams

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.contracts.facts import LayerTask, LinearStats


class StructuredParams(UnitPruneParams):
    """Remove the lowest-scored heads and channels."""

    method: Literal["structured"] = Field("structured", description="Cut heads and channels out of the weights.")
    sparsity: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Fraction of the parameters of all blocks' linear layers to remove. With a uniform allocation "
        "every block ends up with the same shape: whole heads nearest to it, and as many channels as make up the rest.",
        examples=[0.25],
    )
    at_most: AtMost | None = Field(
        None,
        description="Instead of `sparsity`: the size the result must fit into. As little goes as that takes.",
    )
    units: tuple[Literal["head", "channel"], ...] = Field(
        ("head", "channel"),
        strict=False,  # JSON has lists
        min_length=1,
        max_length=2,
        description="What may go: key/value heads with the query heads that share them, MLP channels, or both.",
    )
    protect_first: int = Field(0, ge=0, le=1024, description="Blocks at the front that lose nothing.")
    protect_last: int = Field(0, ge=0, le=1024, description="Blocks at the back that lose nothing.")
    channel_multiple: int = Field(
        1,
        ge=1,
        le=1024,
        description="Channels kept in a block that loses something are a multiple of this. GPUs like 64 or 128.",
    )
    compensate: bool = Field(
        True,
        description="Have the layers that read heads and channels make up for lost inputs, by least squares on "
        "calibration text. After `train` there is nothing to make up for, and it has no effect.",
    )
    dampening: float = Field(
        0.01, gt=0, le=1, description="Added to the diagonal of the inputs' Gram matrix, as a fraction of its mean."
    )

    @model_validator(mode="after")
    def _one_target(self) -> StructuredParams:
        if (self.sparsity is None) == (self.at_most is None):
            raise PydanticCustomError("one_target", "give either `sparsity`, or `at_most`, the size to fit into")
        return self

    @property
    def target(self) -> float | None:
        return self.sparsity

    @property
    def as_trained(self) -> StructuredParams:
        return self.model_copy(update={"compensate": False})

    @property
    def waives(self) -> Stat:
        return Stat.NONE if self.compensate else Stat.GRAM


@unit_pruner(StructuredParams, paper="arXiv:2305.11627", needs=Stat.GRAM)
def prune(reader: LayerTask, kept_I: Tensor, stats: LinearStats, params: StructuredParams) -> Tensor:
    """The reader's weight [O, I], float32, zero in the inputs that go.

    With `compensate` its weights of the least mean squared output error over all weights of the inputs that stay.
    Raises NumericalFailure if the statistics cannot be factorized.
    """
    from workers.engine.maths.second_order import cut_inputs

    gram_II = needed(stats.gram_II, "Stat.GRAM") if params.compensate else None
    return cut_inputs(reader, kept_I, gram_II, params.dampening)
