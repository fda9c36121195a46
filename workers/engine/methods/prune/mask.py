"""Mask: sets the least important weights to exactly zero; the tensors keep their shapes.

`unstructured` removes exact counts (the reference scripts' `<= threshold` removes one more, and more on ties);
`N:M` keeps N of every M consecutive inputs of a row, the layout sparse tensor cores need.
O = output features, I = input features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from workers.engine.patterns import parse_pattern
from workers.engine.registry import Group, PruneMethodParams, pruner

if TYPE_CHECKING:
    from torch import Tensor


class MaskParams(PruneMethodParams):
    """Set the lowest-scored weights to zero."""

    method: Literal["mask"] = Field("mask", description="Zero the lowest-scored weights; shapes stay.")
    sparsity: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Fraction of the prunable weights to remove. Required for `unstructured`; follows from N:M.",
        examples=[0.5],
    )
    pattern: str = Field(
        "unstructured",
        pattern=r"^(unstructured|[0-9]{1,3}:[0-9]{1,3})$",
        description="`unstructured`, or `N:M`: N weights KEPT of every M consecutive inputs, e.g. `2:4`.",
        examples=["unstructured", "2:4"],
    )

    @model_validator(mode="after")
    def _sparsity_and_pattern_agree(self) -> MaskParams:
        try:
            kept_of = parse_pattern(self.pattern)
        except ValueError as error:
            raise PydanticCustomError("invalid_pattern", "{reason}", {"reason": str(error)}) from None
        if kept_of is None:
            if self.sparsity is None:
                raise PydanticCustomError("sparsity_required", "`unstructured` needs `sparsity`, e.g. 0.5")
        elif self.sparsity is not None and abs(self.sparsity - self.target) > 1e-9:
            raise PydanticCustomError(
                "sparsity_mismatch",
                "pattern {pattern} removes {implied} of the weights: leave `sparsity` out or set it to that",
                {"pattern": self.pattern, "implied": f"{self.target:g}"},
            )
        return self

    @property
    def target(self) -> float:
        kept_of = parse_pattern(self.pattern)
        if kept_of is not None:
            return 1 - kept_of[0] / kept_of[1]
        assert self.sparsity is not None  # the validator saw to it
        return self.sparsity


@pruner(MaskParams, paper="arXiv:2306.11695", patterns=("unstructured", "N:M"))
def prune(weight_OI: Tensor, score_OI: Tensor, sparsity: float, group: Group, params: MaskParams) -> Tensor:
    """A copy of the weight with exactly the lowest-scored entries zero.

    `matrix` scores drop round(O * I * sparsity) entries of the whole matrix, `row` scores floor(I * sparsity) of each
    row (Wanda's choice); N:M drops M - N of every M. On ties the lower index goes first.
    """
    from workers.engine.linalg import keep_n_of_m, keep_of_matrix, keep_of_rows

    kept_of = parse_pattern(params.pattern)
    if kept_of is not None:
        keep_OI = keep_n_of_m(score_OI, *kept_of)
    elif group == "matrix":
        keep_OI = keep_of_matrix(score_OI, sparsity)
    else:
        keep_OI = keep_of_rows(score_OI, sparsity)
    return weight_OI.where(keep_OI, weight_OI.new_zeros(()))
