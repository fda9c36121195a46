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

    def removed(self, shape: tuple[int, int], sparsity: float, group: Group) -> int:
        outputs, inputs = shape
        kept_of = parse_pattern(self.pattern)
        if kept_of is not None:
            n, m = kept_of
            return outputs * inputs // m * (m - n)
        if group == "matrix":
            return round(outputs * inputs * sparsity)
        # 0.29 of 100 is 29, although their float product lies just below.
        return outputs * int(inputs * sparsity + 1e-9)

    def misfit(self, shape: tuple[int, int]) -> str | None:
        kept_of = parse_pattern(self.pattern)
        if kept_of is not None and shape[1] % kept_of[1]:
            return f"{self.pattern} needs a number of inputs that {kept_of[1]} divides, not {shape[1]}"
        return None


@pruner(MaskParams, paper="arXiv:2306.11695", patterns=("unstructured", "N:M"))
def prune(weight_OI: Tensor, score_OI: Tensor, sparsity: float, group: Group, params: MaskParams) -> Tensor:
    """A copy of the weight with exactly the lowest-scored entries zero.

    `matrix` scores drop round(O * I * sparsity) entries of the whole matrix, `row` scores floor(I * sparsity) of each
    row (Wanda's choice); N:M drops M - N of every M. On ties the lower index goes first.
    """
    from workers.engine.linalg import lowest, lowest_of_groups

    outputs, inputs = weight_OI.shape
    kept_of = parse_pattern(params.pattern)
    count = params.removed((outputs, inputs), sparsity, group)
    if kept_of is not None:
        n, m = kept_of
        dropped = lowest_of_groups(score_OI.reshape(-1, m), m - n)
    elif group == "matrix":
        dropped = lowest(score_OI.reshape(1, -1), count)
    else:
        dropped = lowest(score_OI, count // outputs)
    return weight_OI.masked_fill(dropped.reshape(outputs, inputs), 0)
