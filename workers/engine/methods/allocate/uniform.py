"""Uniform: every layer loses the same fraction of its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.params import MethodParams
from workers.engine.registry import allocator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workers.engine.contracts.facts import AllocationFacts


class UniformParams(MethodParams):
    """The same sparsity in every layer."""

    method: Literal["uniform"] = Field("uniform", description="Every layer gets the global sparsity.")


@allocator(UniformParams, paper="arXiv:1506.02626", even=True, default=True)
def allocate(facts: AllocationFacts, sparsity: float, params: UniformParams) -> Mapping[str, float]:
    return {layer.name: sparsity for layer in facts.layers}
