"""Interpolate: each new block is the mean of the two that it stands between, tensor by tensor.

A baseline of papers on growing in depth (LESA, Yang et al. 2025, arXiv:2502.13794, compares with it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.growing import BetweenParams, Grown
from workers.engine.removals.new_blocks import block_grower

if TYPE_CHECKING:
    from workers.engine.contracts.growing import Stack


class InterpolateParams(BetweenParams):
    """Average neighbours."""

    method: Literal["interpolate"] = Field("interpolate", description="Average the two neighbours, tensor by tensor.")


@block_grower(InterpolateParams, paper="arXiv:2502.13794")
def grow(stack: Stack, params: InterpolateParams) -> Grown:
    """The mean in float32 of the tensors of the block before and of the block after, biases and norms included."""
    return Grown((stack.read(block).float() + stack.read(block + 1).float()) / 2 for block in stack.like)
