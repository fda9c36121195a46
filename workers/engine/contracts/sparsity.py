"""How much a pruner removes and in which pattern: the part of their parameters that all weight pruners share.

Import-light. O = outputs, I = inputs.
"""

from __future__ import annotations

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from workers.engine.contracts.params import Bounds, Group, WeightPruneParams
from workers.engine.contracts.patterns import parse_pattern


def removed(shape: tuple[int, int], sparsity: float, group: Group, kept_of: tuple[int, int] | None) -> int:
    """How many weights of an (O, I) layer go at `sparsity`: with `kept_of` (N, M) round(M * sparsity) of every M, else
    round(O * I * sparsity) of a matrix or floor(I * sparsity) of each row."""
    outputs, inputs = shape
    if kept_of is not None:
        _, m = kept_of
        return outputs * inputs // m * round(m * sparsity)
    if group == "matrix":
        return round(outputs * inputs * sparsity)
    # 0.29 of 100 is 29, although their float product lies just below.
    return outputs * int(inputs * sparsity + 1e-9)


class SparsityParams(WeightPruneParams):
    """A pruner that sets weights to zero: exactly one of `sparsity`, an N:M `pattern`, `perplexity_ratio`."""

    sparsity: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Fraction of the prunable weights to remove. Follows from an N:M pattern.",
        examples=[0.5],
    )
    pattern: str = Field(
        "unstructured",
        pattern=r"^(unstructured|[0-9]{1,3}:[0-9]{1,3})$",
        description="`unstructured`, or `N:M`: N weights KEPT of every M consecutive inputs, e.g. `2:4`. An allocation "
        "that is not uniform gives each block its own N, with N:M as the mean.",
        examples=["unstructured", "2:4"],
    )
    perplexity_ratio: float | None = Field(
        None,
        gt=1,
        le=100,
        description="Instead of `sparsity`: remove as much as keeps the perplexity of the first `perplexity` "
        "evaluation within this multiple of the dense model's. Found by bisection with scores taken once, measured on "
        "the result as it ships, and sought again below it where that breaks it.",
        examples=[1.1],
    )

    @model_validator(mode="after")
    def _one_target(self) -> SparsityParams:
        try:
            kept_of = parse_pattern(self.pattern)
        except ValueError as error:
            raise PydanticCustomError("invalid_pattern", "{reason}", {"reason": str(error)}) from None
        if self.perplexity_ratio is not None:
            if self.sparsity is not None or kept_of is not None:
                raise PydanticCustomError(
                    "two_targets", "`perplexity_ratio` finds the sparsity: leave `sparsity` and `pattern` out"
                )
        elif kept_of is None:
            if self.sparsity is None:
                raise PydanticCustomError(
                    "sparsity_required", "`unstructured` needs `sparsity`, e.g. 0.5, or `perplexity_ratio`, e.g. 1.1"
                )
        elif self.sparsity is not None and abs(self.sparsity - (1 - kept_of[0] / kept_of[1])) > 1e-9:
            raise PydanticCustomError(
                "sparsity_mismatch",
                "pattern {pattern} removes {implied} of the weights: leave `sparsity` out or set it to that",
                {"pattern": self.pattern, "implied": f"{1 - kept_of[0] / kept_of[1]:g}"},
            )
        return self

    @property
    def kept_of(self) -> tuple[int, int] | None:
        return parse_pattern(self.pattern)

    @property
    def target(self) -> float | None:
        if self.kept_of is not None:
            return 1 - self.kept_of[0] / self.kept_of[1]
        return self.sparsity

    @property
    def bound(self) -> Bounds | None:
        if self.perplexity_ratio is None:
            return None
        return Bounds("perplexity_ratio", self.perplexity_ratio, 0.0, "/prune/perplexity_ratio")

    def removed(self, shape: tuple[int, int], sparsity: float, group: Group) -> int:
        return removed(shape, sparsity, group, self.kept_of)

    def misfit(self, shape: tuple[int, int]) -> str | None:
        if self.kept_of is not None and shape[1] % self.kept_of[1]:
            return f"{self.pattern} needs a number of inputs that {self.kept_of[1]} divides, not {shape[1]}"
        return None
