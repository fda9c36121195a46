"""SparseGPT: removes weights input by input, later ones make up for it (Frantar and Alistarh 2023, arXiv:2301.00774).

Departs from the released code in counts, which are exact, and in dead inputs: their weights go first, but no more than
the sparsity asks for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import Group, Stat
from workers.engine.contracts.sparsity import SparsityParams
from workers.engine.removals.weights import weight_pruner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from workers.engine.contracts.facts import LayerTask, LinearStats


class SparseGPTParams(SparsityParams):
    """Choose and compensate with the second-order statistics of the inputs; needs calibration data, and no score."""

    method: Literal["sparsegpt"] = Field(
        "sparsegpt", description="Remove weights by what they cost the layer's output, and let later inputs make up."
    )
    dampening: float = Field(
        0.01,
        gt=0,
        le=1,
        description="Added to the diagonal of the inputs' Gram matrix, as a fraction of its mean.",
    )
    block_size: int = Field(
        128,
        ge=1,
        le=65536,
        description="Consecutive inputs whose weights are compared with one another. N:M patterns compare within their "
        "groups, and M must divide it.",
    )

    @model_validator(mode="after")
    def _whole_groups(self) -> SparseGPTParams:
        if self.kept_of is not None and self.block_size % self.kept_of[1]:
            raise PydanticCustomError(
                "block_size_mismatch",
                "`block_size` {size} is not a multiple of the {m} inputs of a group of {pattern}",
                {"size": self.block_size, "m": self.kept_of[1], "pattern": self.pattern},
            )
        return self


@weight_pruner(
    SparseGPTParams,
    paper="arXiv:2301.00774",
    patterns=("unstructured", "N:M"),
    scores="unused",
    group="matrix",
    needs=Stat.GRAM,
    updates_weights=True,
)
def prune(layers: Sequence[LayerTask], stats: LinearStats, group: Group, params: SparseGPTParams) -> list[Tensor]:
    """The pruned and compensated weights [O, I], float32.

    Every block of inputs of a layer loses the same fraction, wherever in its rows. Raises NumericalFailure if the
    statistics are not finite or cannot be factorized.
    """
    from workers.engine.maths.second_order import hessian_of, solve_columns

    hessian = hessian_of(needed(stats.gram_II, "Stat.GRAM"), params.dampening, layers)
    return solve_columns(layers, hessian, params.kept_of, params.block_size)
