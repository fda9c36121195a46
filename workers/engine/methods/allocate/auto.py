"""Auto: the one of several allocations whose trial pruning loses least on calibration text. Our own method.

No rule of allocation wins on every model: AlphaPruning's was the best of the cheap ones on a real model of 30 blocks,
and ruined a small one of 8 (docs/methods.md). So each is tried, on the first tokens of the calibration text.
Choosing an algorithm by what it does on the case at hand is Rice's proposal (1976, doi:10.1016/S0065-2458(08)60520-3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import MethodParams, Stat
from workers.engine.registry import allocator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workers.engine.contracts.facts import AllocationFacts

Name = Literal["uniform", "owl", "alpha_pruning", "dlp", "atp", "isc"]


class AutoParams(MethodParams):
    """Try several allocations, take the best."""

    method: Literal["auto"] = Field(
        "auto", description="Prune with each of several allocations in a trial, and take the one that loses least."
    )
    among: tuple[Name, ...] = Field(
        ("uniform", "owl", "alpha_pruning"),
        strict=False,  # JSON has lists
        min_length=2,
        max_length=6,
        description="Allocators that are tried, with their default parameters. Of equals the first is taken.",
    )

    @field_validator("among")
    @classmethod
    def _each_once(cls, among: tuple[Name, ...]) -> tuple[Name, ...]:
        if len(set(among)) < len(among):
            raise PydanticCustomError("repeated", "name every allocator once")
        return among

    @property
    def compares(self) -> tuple[str, ...]:
        return self.among

    def trials(self, streams: int) -> float:
        return len(self.among)


@allocator(AutoParams, paper="doi:10.1016/S0065-2458(08)60520-3", needs=Stat.LOSS, unstructured_only=True)
def allocate(facts: AllocationFacts, sparsity: float, params: AutoParams) -> Mapping[str, float]:
    """Never worse than any of `among` on the text it is tried on. Deterministic."""
    found = [facts.rules[name](sparsity) for name in params.among]
    return min(found, key=needed(facts.loss, "Stat.LOSS"))
